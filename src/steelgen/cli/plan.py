"""`steelgen plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from steelgen.cli.options import JsonOption, QuietOption
from steelgen.cli.output import errors_as_lines, log, print_json, print_table, progress_bar


@errors_as_lines()
def plan_command(
    dataset: Annotated[Path, Argument(help="Dataset folder; see `steelgen data import`.")],
    out: Annotated[Path | None, Option("--out", "-o", help="New folder for the plan. Default: plans/NAME.")] = None,
    minutes: Annotated[float, Option("--minutes", "-m", help="Minutes of training.")] = 30.0,
    unlabeled: Annotated[
        Path | None,
        Option("--unlabeled", "-u", help="Folder of further micrographs without masks; a segmenter labels them first."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a dataset and this machine, and write ready configs, each choice with its reason."""
    from steelgen.planning.page import describe_value
    from steelgen.planning.plan import describe_plan, plan

    silent = quiet or as_json
    with progress_bar("micrographs", silent) as report:
        found = plan(dataset, out, minutes, report, unlabeled)
    folder = out or Path("plans") / dataset.resolve().name
    if as_json:
        print_json({"folder": str(folder), **describe_plan(found)})
    if silent:
        return
    rows = [[choice.name, describe_value(choice.value), choice.because] for choice in found.choices]
    print_table(f"plan for {dataset}", ["choice", "value", "because"], rows)
    for warning in found.warnings:
        log(f"warning: {warning}")
    typer.echo(f"configs, plan.json and plan.html in {folder}; run: steelgen workflow -c {folder / 'workflow.json'}")

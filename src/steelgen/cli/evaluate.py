"""`steelgen evaluate`, `compare` and `utility`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from steelgen.cli.isdm import load_utility_settings
from steelgen.cli.options import (
    AllowChangedOption,
    ConfigOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    SetOption,
    ShardOption,
)
from steelgen.cli.output import errors_as_lines, log, print_config, print_json, print_table, progress_bar
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.config.studies import StudyConfig


@errors_as_lines()
def evaluate_command(
    config: ConfigOption,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate generated micrographs; every metric is reported with its real-vs-real floor."""
    from steelgen.config.base import load_config
    from steelgen.config.evaluate import EvaluateConfig

    settings = load_config(config, EvaluateConfig, overrides or ())
    silent = quiet or (as_json and not dry_run)
    print_config(settings, silent)
    if dry_run:
        from steelgen.evaluation.sets import describe_sets, load_evidence

        evidence, notes = load_evidence(settings)
        print_json(describe_sets(evidence))
        for note in notes:
            log(f"note: {note}")
        return
    from steelgen.evaluation.evaluate import evaluate

    with progress_bar("evaluate", silent) as report:
        result = evaluate(settings, lambda line: None if silent else log(line), report)
    if as_json:
        print_json(result)
    if silent:
        return
    _print_notes(result)
    _print_figures(result["figures"])
    for answer in result["verdict"]:
        typer.echo(f"{answer['question']} {answer['answer']}")
    typer.echo(f"report: {settings.output_dir / 'report.html'}; figures: {settings.output_dir / 'evaluation.json'}")


@errors_as_lines()
def compare_command(
    runs: Annotated[list[Path] | None, Argument(help="Two or more output folders of `steelgen evaluate`.")] = None,
    families: Annotated[
        Path | None, Option(metavar="CONFIG", help="Instead: train, sample and judge generators at equal time.")
    ] = None,
    overrides: SetOption = None,
    out: Annotated[Path | None, Option(help="HTML page to write the comparison to.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations side by side, or train and compare generators."""
    if families is not None:
        if runs or out:
            raise InputError("--families: takes no evaluations and no --out; its output_dir has the page")
        _compare_families(families, overrides, quiet, as_json)
        return
    if not runs or overrides:
        raise InputError(
            "compare: requires evaluations, or --families CONFIG" if not runs else "--set: needs --families"
        )
    from steelgen.evaluation.comparison import build_comparison, compare
    from steelgen.files import new_file
    from steelgen.pages import show_number, show_value

    columns, rows, differences = compare(runs)
    if out is not None:
        with new_file(out) as working:
            working.write_text(build_comparison(runs), encoding="utf-8")
    if as_json:
        print_json({"columns": columns, "rows": rows, "not_alike": differences})
    if quiet or as_json:
        return
    for line in differences:
        log(f"different settings: {line}")
    shown = []
    for metric, compared, *values, floor, better in rows:
        cells = ["–" if value is None else show_value(value) for value in values]
        shown.append([metric, compared, *cells, show_number(floor), better])
    print_table("comparison of evaluations", columns, shown)
    if out is not None:
        typer.echo(f"page: {out}")


def _compare_families(path: Path, overrides: list[str] | None, quiet: bool, as_json: bool) -> None:
    from steelgen.cli.workflow import run_stage
    from steelgen.config.base import load_config
    from steelgen.config.families import FamiliesConfig
    from steelgen.family_comparison import compare_families
    from steelgen.pages import show_number, show_value

    config = load_config(path, FamiliesConfig, overrides or ())
    print_config(config, quiet or as_json)
    result = compare_families(config, run_stage, (lambda line: None) if quiet or as_json else log)
    if as_json:
        print_json(result)
    if quiet or as_json:
        return
    names = [family["name"] for family in result["families"]]
    rows = []
    for row in result["figures"]:
        cells = [row["figures"][name] for name in names]
        shown = ["–" if figure is None else show_value(figure) for figure in cells]
        rows.append([row["purpose"], row["metric"], *shown, show_number(row["floor"]), ", ".join(row["best"])])
    print_table(f"after {config.minutes:g} minutes each", ["purpose", "metric", *names, "floor", "best"], rows)
    typer.echo(f"pages: {config.output_dir / 'families.html'}, {config.output_dir / 'comparison.html'}")


@errors_as_lines()
def utility_command(
    config: ConfigOption,
    overrides: SetOption = None,
    shard: ShardOption = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure whether generated data improves segmentation, instances or classification of held-out real micrographs.

    With --shard, the last shard to finish writes the report.
    """
    settings = load_utility_settings(config, overrides)
    silent = quiet or (as_json and not dry_run)
    print_config(settings, silent)
    if dry_run:
        _print_plan(settings)
        return
    from steelgen.evaluation.study import utility
    from steelgen.shards import find_shard, parse_shard

    part = parse_shard(shard) if shard else find_shard(os.environ)
    with progress_bar("cells", silent) as report:
        result = utility(settings, lambda line: None if silent else log(line), part, allow_changed or (), report)
    if as_json:
        print_json(result)
    if silent:
        return
    if result is None:
        typer.echo(f"shard {part} is complete in {settings.output_dir}; cells of other shards are missing")
    else:
        _print_study(settings, result)


def _print_notes(result: dict[str, Any]) -> None:
    """Prints the notes and warnings of an evaluation or a study to stderr."""
    for kind in ("notes", "warnings"):
        for line in result[kind]:
            log(f"{kind[:-1]}: {line}")


def _print_figures(figures: list[dict[str, Any]]) -> None:
    """Prints one table per section."""
    from steelgen.pages import show_number, show_value

    for section in dict.fromkeys(figure["section"] for figure in figures):
        rows = [
            [
                figure["metric"] + (f" ({figure['note']})" if figure["note"] else ""),
                figure["compared"],
                show_value(figure),
                show_number(figure["floor"]),
                figure["better"],
                f"{figure['n'][0]}/{figure['n'][1]}",
                figure["seed"],
            ]
            for figure in figures
            if figure["section"] == section
        ]
        print_table(section, ["metric", "compared", "value [95 %]", "floor", "better", "N", "seed"], rows)


def _print_study(settings: StudyConfig, result: dict[str, Any]) -> None:
    """Prints scores, differences and the verdict of a finished study."""
    from steelgen.evaluation.study_views import find_view
    from steelgen.evaluation.utility.words import find_words
    from steelgen.evaluation.verdict import judge_study

    _print_notes(result)
    view = find_view(result)
    print_table(view.title(result), *view.scores(result))
    if result["differences"]:
        print_table(f"difference to real {find_words(result).real} only", *view.differences(result))
    for answer in judge_study(result):
        typer.echo(f"{answer.question} {answer.answer}")
    typer.echo(f"report: {settings.output_dir / 'utility.html'}; figures: {settings.output_dir / 'utility.json'}")


def _print_plan(settings: StudyConfig) -> None:
    from steelgen.config.classify import ClassifyConfig
    from steelgen.evaluation.sets import describe_geometry
    from steelgen.evaluation.study import load_data
    from steelgen.evaluation.utility.cells import cell_path, list_cells
    from steelgen.evaluation.utility.data import count_data

    cells = list_cells(settings)
    codes = list(dict.fromkeys(cell.code for cell in cells))
    studies = list(load_data(settings).values())
    if isinstance(settings, ClassifyConfig):
        columns = ["code", "real sound", "real defective", "generated defective"]
        rows = [[code.text, len(studies[0].train.sound), *studies[0].count(code)] for code in codes]
    else:
        columns = ["code", "real micrographs", "generated pairs"]
        rows = [[code.text, *min(count_data(code, data) for data in studies)] for code in codes]
        if settings.predicted:
            columns.append("predicted masks")
            fewest = min(len(data.predicted or ()) for data in studies)
            rows = [[*row, fewest * code.predicted] for row, code in zip(rows, codes, strict=True)]
    print_table("training sets", columns, rows)
    done = sum(cell_path(settings.output_dir, cell).is_file() for cell in cells)
    typer.echo(f"{describe_geometry(studies[0].geometry)}; {len(cells)} cells, {done} done")

"""`steelgen utility`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steelgen.cli.options import AllowChangedOption, ConfigOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from steelgen.config.utility import UtilityConfig


def utility_command(
    config: ConfigOption,
    overrides: SetOption = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Run part I of N of the cells alone, from 1; the part that ends last writes the report. Under "
            "torchrun and in a Slurm job array it follows from the environment.",
        ),
    ] = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find out whether generated data helps segmentation networks on held-out real micrographs."""
    from steelgen.config.base import config_to_json

    with errors_as_lines():
        settings = load_utility_settings(config, overrides)
        silent = quiet or (as_json and not dry_run)
        if not silent:
            print_json(config_to_json(settings))
        if dry_run:
            _describe_study(settings)
            return
        from steelgen.evaluation.utility.study import utility
        from steelgen.shards import find_shard, parse_shard

        part = parse_shard(shard) if shard else find_shard(os.environ)
        with progress_bar("cells", silent) as report:
            say = (lambda line: None) if silent else (lambda line: typer.echo(line, err=True))
            result = utility(settings, say, part, allow_changed or (), report)
        if as_json:
            print_json(result)
        if silent:
            return
        if result is None:
            typer.echo(f"shard {part} is complete in {settings.output_dir}; cells of other shards are missing")
        else:
            _print_study(settings, result)


def load_utility_settings(config: Path, overrides: list[str] | None) -> UtilityConfig:
    """Reads a config of steelgen's, or of ISDM's segmentation_evaluation, saying on stderr what that was read as."""
    from steelgen.config.base import load_config, parse_config
    from steelgen.config.utility import UtilityConfig
    from steelgen.files import load_json
    from steelgen.isdm.utility import convert_isdm_study, is_isdm_study

    values = load_json(config)
    if not is_isdm_study(values):
        return load_config(config, UtilityConfig, overrides or ())
    converted, notes = convert_isdm_study(values, str(config))
    typer.echo(f"{config}: taken for a config of ISDM's segmentation_evaluation, read as `steelgen utility`", err=True)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return parse_config(converted, UtilityConfig, overrides or (), origin=str(config))


def _print_study(settings: UtilityConfig, result: dict[str, Any]) -> None:
    """Prints scores, differences and the verdict of a finished study."""
    from steelgen.evaluation.utility.study_page import describe_differences, describe_scores
    from steelgen.evaluation.verdict import judge_differences

    for kind in ("notes", "warnings"):
        for line in result[kind]:
            typer.echo(f"{kind[:-1]}: {line}", err=True)
    test = f"{result['micrographs']['test']} micrographs of {settings.test_split}"
    print_table(f"mIoU on {test}", *describe_scores(result["scores"], result["class_names"]))
    if result["differences"]:
        print_table("difference to real micrographs alone", *describe_differences(result["differences"]))
    for answer in judge_differences(result["differences"]):
        typer.echo(f"{answer.question} {answer.answer}")
    typer.echo(f"report: {settings.output_dir / 'utility.html'}; figures: {settings.output_dir / 'utility.json'}")


def _describe_study(settings: UtilityConfig) -> None:
    from steelgen.evaluation.sets import describe_geometry
    from steelgen.evaluation.utility.cells import cell_path, list_cells
    from steelgen.evaluation.utility.data import count_data, load_study

    data = load_study(settings)
    cells = list_cells(settings)
    codes = list(dict.fromkeys(cell.code for cell in cells))
    rows = [[code.text, *count_data(code, data)] for code in codes]
    print_table("training sets", ["code", "real micrographs", "generated pairs"], rows)
    done = sum(cell_path(settings.output_dir, cell).is_file() for cell in cells)
    typer.echo(f"{describe_geometry(data.geometry)}; {len(cells)} cells, {done} of them done")

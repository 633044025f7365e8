"""`steelgen evaluate`."""

from __future__ import annotations

from typing import Any

import typer

from steelgen.cli.options import ConfigOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar


def evaluate_command(
    config: ConfigOption,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge generated micrographs, each figure beside its real-vs-real floor."""
    from steelgen.config.base import config_to_json, load_config
    from steelgen.config.evaluate import EvaluateConfig

    with errors_as_lines():
        settings = load_config(config, EvaluateConfig, overrides or ())
        silent = quiet or (as_json and not dry_run)
        if not silent:
            print_json(config_to_json(settings))
        if dry_run:
            from steelgen.evaluation.sets import describe_sets, load_evidence

            evidence, notes = load_evidence(settings)
            print_json(describe_sets(evidence))
            _print_lines("note", notes)
            return
        from steelgen.evaluation.evaluate import evaluate

        with progress_bar("evaluate", silent) as report:
            result = evaluate(settings, lambda line: None if silent else typer.echo(line, err=True), report)
        if as_json:
            print_json(result)
        if silent:
            return
        _print_lines("note", result["notes"])
        _print_lines("warning", result["warnings"])
        _print_figures(result["figures"])
        for answer in result["verdict"]:
            typer.echo(f"{answer['question']} {answer['answer']}")
        typer.echo(f"report: {settings.output_dir / 'report.html'}; figures: {settings.output_dir / 'evaluation.json'}")


def _print_figures(figures: list[dict[str, Any]]) -> None:
    """Prints one table a section."""
    from steelgen.pages import show_number, show_value

    for section in dict.fromkeys(figure["section"] for figure in figures):
        rows = [
            [
                figure["metric"],
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


def _print_lines(kind: str, lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"{kind}: {line}", err=True)

"""`steelgen compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.options import JsonOption, QuietOption
from steelgen.cli.output import errors_as_lines, print_json, print_table


def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `steelgen evaluate`, two or more.")],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as a page (.html).")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put several evaluations side by side."""
    from steelgen.evaluation.comparison import build_comparison, compare
    from steelgen.files import new_file
    from steelgen.pages import show_number, show_value

    with errors_as_lines():
        columns, rows, differences = compare(runs)
        if out is not None:
            with new_file(out) as working:
                working.write_text(build_comparison(runs), encoding="utf-8")
        if as_json:
            print_json({"columns": columns, "rows": rows, "not_alike": differences})
        if quiet or as_json:
            return
        for line in differences:
            typer.echo(f"not alike: {line}", err=True)
        shown = [
            [
                *row[:2],
                *("–" if cell is None else show_value(cell) for cell in row[2:-2]),
                show_number(row[-2]),
                row[-1],
            ]
            for row in rows
        ]
        print_table("evaluations side by side", columns, shown)
        if out is not None:
            typer.echo(f"page: {out}")

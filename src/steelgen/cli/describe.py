"""`steelgen describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.options import JsonOption, QuietOption
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar


def describe_command(
    generator: Annotated[Path, typer.Argument(help="A trained generator of kind rvae: its run folder or export.")],
    folder: Annotated[Path, typer.Argument(help="A dataset folder, or what `steelgen sample` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the table and the pictures.")],
    split: Annotated[list[str] | None, typer.Option(help="A split of the dataset; repeatable. All by default.")] = None,
    color_by: Annotated[
        str, typer.Option(help="Column of the table that colors the scatter: class, or a key of metadata.jsonl.")
    ] = "class",
    clusters: Annotated[int, typer.Option(min=1, help="Clusters of islands that are alike.")] = 4,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """What kinds of island there are: a table, the manifold, clusters, and how they go with a condition."""
    from steelgen.evaluation.describe import describe

    with errors_as_lines():
        silent = quiet or as_json
        with progress_bar("images", silent) as report:
            found = describe(generator, folder, out, split or (), color_by, clusters, report)
        if as_json:
            print_json(found)
        if silent:
            return
        columns = ["cluster", "islands", "share", "median area (px)", "median aspect ratio"]
        keys = ["cluster", "islands", "share", "median_area_px", "median_aspect_ratio"]
        rows = [["–" if row[key] is None else row[key] for key in keys] for row in found["clusters"]]
        print_table(f"{found['islands']} islands", columns, rows)
        if "occupancy" in found:
            shares = [[condition, *values] for condition, values in found["occupancy"].items()]
            names = [color_by, *(f"cluster {number}" for number in range(clusters))]
            print_table("share of the clusters", names, shares)
            typer.echo(f"agreement of clusters with {color_by} (adjusted Rand): {found['adjusted_rand']:.3f}")
        typer.echo(f"table: {out / 'islands.csv'}; pictures: manifold, scatter, layout, clusters in {out}")

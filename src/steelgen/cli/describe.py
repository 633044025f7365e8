"""`steelgen describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from steelgen.cli.options import JsonOption, QuietOption
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar


@errors_as_lines()
def describe_command(
    generator: Annotated[Path, Argument(help="Trained generator of kind rvae: a run folder or export.")],
    folder: Annotated[Path, Argument(help="Dataset folder or samples folder.")],
    out: Annotated[Path, Option("--out", "-o", help="New folder for the table and the plots.")],
    split: Annotated[list[str] | None, Option(help="Split of the dataset; repeatable. Default: all.")] = None,
    color_by: Annotated[
        str, Option(help="Column of the table that colors the scatter plot: class, or a key of metadata.jsonl.")
    ] = "class",
    clusters: Annotated[int, Option(min=1, help="Number of clusters of similar islands.")] = 4,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe what kinds of island there are: a table, the latent manifold, clusters and their occupancy."""
    from steelgen.evaluation.describe import describe

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
    typer.echo(f"table in {out / 'islands.csv'}; manifold, scatter, layout and clusters as plots in {out}")

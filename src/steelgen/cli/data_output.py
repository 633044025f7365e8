"""Results of `steelgen data` as lines and tables or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from steelgen.cli.output import print_json, print_table

if TYPE_CHECKING:
    from steelgen.data.check import CheckReport
    from steelgen.data.folder import DatasetInfo


def report_import(out: Path, info: DatasetInfo, quiet: bool, as_json: bool) -> None:
    """Prints what was written, and the automatic changes to the images."""
    from steelgen.data.folder import SPLITS, load_metadata

    if quiet and not as_json:
        return
    rows = load_metadata(out)
    counts = Counter(name.split("/")[0] for name in rows)
    cropped, bars, sized = (
        sum(key in row for row in rows.values()) for key in ("mask_height", "data_bar_height", "pixel_size_um")
    )
    if as_json:
        print_json(
            {
                "folder": str(out),
                "class_names": info.class_names,
                "images": dict(counts),
                "pixel_size_um": info.pixel_size_um,
                "cropped_to_masks": cropped,
                "data_bars_cropped": bars,
            }
        )
        return
    names = ", ".join(info.class_names[:8]) + (" …" if info.num_classes > 8 else "")
    typer.echo(f"{out}: {info.num_classes} classes ({names}); {describe_counts(counts, 'images')}")
    if missing := [split for split in SPLITS if split not in counts]:
        typer.echo(
            f"{out}: no images in {' and '.join(missing)}; `steelgen data split {out} FOLDER` creates all splits"
        )
    if bars:
        typer.echo(f"{out}: cropped the data bar of {bars} images; --data-bar none keeps it")
    if cropped:
        typer.echo(f"{out}: cropped {cropped} images at the bottom to the height of their masks")
    if 0 < sized < len(rows):
        typer.echo(f"{out}: pixel size known for {sized} of {len(rows)} images")


def describe_counts(counts: Mapping[str, int], what: str) -> str:
    """Formats counts by split, e.g. "12 images in train, 3 images in val"."""
    from steelgen.data.folder import SPLITS

    return ", ".join(f"{counts[split]} {what} in {split}" for split in SPLITS if split in counts)


def report_check(result: CheckReport, quiet: bool, as_json: bool) -> None:
    """Prints content and problems of a dataset folder."""
    import numpy as np

    names, table, splits = result.info.class_names, [], {}
    for split, summary in result.splits.items():
        ignored = summary.ignored_pixels / max(summary.num_pixels, 1)
        sizes = sorted(summary.sizes)
        extent = "×".join(map(str, sizes[0])) + (f" … {'×'.join(map(str, sizes[-1]))}" if len(sizes) > 1 else "")
        first = (split, summary.num_images, extent, round(summary.mean_intensity, 1))
        classes = {}
        for index, name in enumerate(names):
            areas, share = summary.island_areas[index], summary.share(index)
            median = float(np.median(areas)) if len(areas) else None
            classes[name] = {"share": share, "islands": len(areas), "median_area_px": median}
            shown = (name, f"{100 * share:.2f}", len(areas) if index else "–", "–" if median is None else median)
            table.append((*(first if index == 0 else ("",) * 4), *shown))
        if names:
            table.append(("", "", "", "", "(ignored)", f"{100 * ignored:.2f}", "–", "–"))
        else:
            table.append((*first, "(no masks)", "–", "–", "–"))
        splits[split] = {
            "images": summary.num_images,
            "sizes": sizes,
            "mean_gray": summary.mean_intensity,
            "ignored_share": ignored,
            "classes": classes,
        }
    if as_json:
        problems = [{"file": file, "problem": problem} for file, problem in result.problems]
        report = {"folder": str(result.root), "class_names": names, "splits": splits, "problems": problems}
        print_json(report)
    elif not quiet:
        columns = ("split", "images", "size px", "mean gray", "class", "area %", "islands", "median area px")
        print_table(str(result.root), columns, table)
        if result.problems:
            print_table(f"problems: {len(result.problems)}", ("file", "problem"), result.problems)

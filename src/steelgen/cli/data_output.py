"""What `steelgen data` tells of datasets, as lines and tables or as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from steelgen.cli.output import print_table

if TYPE_CHECKING:
    from steelgen.data.check import CheckReport
    from steelgen.data.folder import DatasetInfo


def describe_import(out: Path, info: DatasetInfo) -> dict[str, Any]:
    """What was written, as JSON values."""
    from collections import Counter

    from steelgen.data.folder import load_metadata

    rows = load_metadata(out)
    return {
        "folder": str(out),
        "class_names": info.class_names,
        "images": dict(Counter(name.split("/")[0] for name in rows)),
        "pixel_size_um": info.pixel_size_um,
        "cropped_to_masks": sum("mask_height" in row for row in rows.values()),
        "data_bars_cropped": sum("data_bar_height" in row for row in rows.values()),
    }


def print_import(out: Path, info: DatasetInfo) -> None:
    """What was written, and what was done to the images that nobody asked for by name."""
    from collections import Counter

    from steelgen.data.folder import SPLITS, load_metadata

    metadata = load_metadata(out)
    shown = ", ".join(info.class_names[:8]) + (" …" if info.num_classes > 8 else "")
    counts = Counter(name.split("/")[0] for name in metadata)
    typer.echo(f"{out}: {info.num_classes} classes ({shown}); {describe_counts(counts, 'images')}")
    if missing := [split for split in SPLITS if split not in counts]:
        typer.echo(f"{out}: nothing in {' and '.join(missing)}; `steelgen data split {out} FOLDER` makes all three")
    bars = sum("data_bar_height" in row for row in metadata.values())
    if bars:
        typer.echo(f"{out}: a data bar was cropped from {bars} images; --data-bar none keeps it")
    if shorter := sum("mask_height" in row for row in metadata.values()):
        typer.echo(
            f"{out}: {shorter} images were cropped at the bottom to the height of their masks, which lack the bar"
        )
    sized = sum("pixel_size_um" in row for row in metadata.values())
    if 0 < sized < len(metadata):
        typer.echo(f"{out}: the pixel size is known for {sized} of {len(metadata)} images only")


def describe_counts(counts: Mapping[str, int], what: str) -> str:
    from steelgen.data.folder import SPLITS

    return ", ".join(f"{counts[split]} {what} in {split}" for split in SPLITS if split in counts)


def describe_report(result: CheckReport) -> dict[str, Any]:
    """What the check found, as JSON values."""
    import numpy as np

    return {
        "folder": str(result.root),
        "class_names": result.info.class_names,
        "splits": {
            split: {
                "images": summary.num_images,
                "sizes": sorted(summary.sizes),
                "mean_gray": summary.mean_intensity,
                "ignored_share": summary.ignored_pixels / max(summary.num_pixels, 1),
                "classes": {
                    name: {
                        "share": summary.share(index),
                        "islands": len(areas := summary.island_areas[index]),
                        "median_area_px": float(np.median(areas)) if len(areas) else None,
                    }
                    for index, name in enumerate(result.info.class_names)
                },
            }
            for split, summary in result.splits.items()
        },
        "problems": [{"file": file, "problem": problem} for file, problem in result.problems],
    }


def print_report(result: CheckReport) -> None:
    import numpy as np

    names = result.info.class_names
    rows = []
    for split, summary in result.splits.items():
        sizes = sorted(summary.sizes)
        extent = "×".join(map(str, sizes[0])) + (f" … {'×'.join(map(str, sizes[-1]))}" if len(sizes) > 1 else "")
        for index, name in enumerate(names):
            areas = summary.island_areas[index]
            rows.append(
                (
                    split if index == 0 else "",
                    summary.num_images if index == 0 else "",
                    extent if index == 0 else "",
                    round(summary.mean_intensity, 1) if index == 0 else "",
                    name,
                    f"{100 * summary.share(index):.2f}",
                    len(areas) if index else "–",
                    float(np.median(areas)) if len(areas) else "–",
                )
            )
        if not names:
            gray = round(summary.mean_intensity, 1)
            rows.append((split, summary.num_images, extent, gray, "(no masks)", "–", "–", "–"))
            continue
        rows.append(
            ("", "", "", "", "(ignored)", f"{100 * summary.ignored_pixels / max(summary.num_pixels, 1):.2f}", "–", "–")
        )
    columns = ("split", "images", "size px", "mean gray", "class", "area %", "islands", "median area px")
    print_table(str(result.root), columns, rows)
    if result.problems:
        print_table(f"problems: {len(result.problems)}", ("file", "problem"), result.problems)

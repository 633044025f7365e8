"""The check page: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steelgen.data.check import CheckReport
from steelgen.files import new_file
from steelgen.pages import embed_image, render

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 170, 46, 34


def save_page(path: Path, report: CheckReport) -> None:
    """Writes the check page: problems, figures, plots and overlays; it loads nothing from elsewhere."""
    with new_file(path) as working:
        working.write_text(build_page(report), encoding="utf-8")


def build_page(report: CheckReport) -> str:
    """The check page as HTML text."""
    info = report.info
    facts = [f"{info.num_classes} classes"]
    facts += [f"{summary.num_images} images in {split}" for split, summary in report.splits.items()]
    facts += [f"pixel size {info.pixel_size_um:g} µm"] if info.pixel_size_um else ["pixel size unknown"]
    facts += [text for text in (info.licence, info.source) if text]
    columns, rows = _list_classes(report)
    return render(
        "check.html",
        title=info.name,
        facts=facts,
        problems=report.problems,
        columns=columns,
        rows=rows,
        plots=_draw_plots(report),
        class_names=info.class_names,
        palette=info.palette,
        overlays=[(caption, embed_image(image, "JPEG", quality=88)) for caption, image in report.thumbnails],
    )


def _list_classes(report: CheckReport) -> tuple[list[str], list[list[str]]]:
    """The table of classes: column titles and rows."""
    columns = ["class"]
    for split in report.splits:
        columns += [f"{split}: area %", "islands", "median area px"]
    rows = []
    for index, name in enumerate(report.info.class_names):
        row = [name]
        for summary in report.splits.values():
            areas = summary.island_areas[index]
            row += [f"{100 * summary.share(index):.2f}", f"{len(areas):,}" if index else "–"]
            row += [f"{np.median(areas):,.2f}" if len(areas) else "–"]
        rows.append(row)
    ignored = ["(ignored)"]
    for summary in report.splits.values():
        ignored += [f"{100 * summary.ignored_pixels / max(summary.num_pixels, 1):.2f}", "–", "–"]
    return columns, [*rows, ignored]


def _draw_plots(report: CheckReport) -> list[tuple[str, Markup]]:
    """Grey levels of each split, and the size of the islands of each class over all splits."""
    plots = []
    for split, summary in report.splits.items():
        counts = summary.intensity.reshape(64, 4).sum(axis=1)
        plots.append((f"grey levels, {split}", _draw_histogram(counts, ("0", "128", "255"), "#555")))
    for index, name in enumerate(report.info.class_names[1:], start=1):
        areas = np.concatenate([summary.island_areas[index] for summary in report.splits.values()])
        if len(areas):
            diameters = np.sqrt(4 * areas / np.pi)
            edges = np.geomspace(1, max(float(diameters.max()), 2) * 1.001, 33)
            labels = ("1", f"{np.sqrt(edges[-1]):.1f}", f"{edges[-1]:.0f}")
            color = "#{:02x}{:02x}{:02x}".format(*report.info.palette[index])
            caption = f"islands of {name}: equivalent diameter in px (logarithmic), {len(areas)} islands"
            plots.append((caption, _draw_histogram(np.histogram(diameters, edges)[0], labels, color)))
    return plots


def _draw_histogram(counts: NDArray[np.int64], labels: Sequence[str], color: str) -> Markup:
    highest, width = max(int(counts.max()), 1), (_WIDTH - _LEFT) / len(counts)
    floor = _HEIGHT - _BOTTOM
    bars = "".join(
        f'<rect x="{_LEFT + position * width:.1f}" y="{floor * (1 - count / highest) + 8:.1f}" '
        f'width="{width * 0.92:.1f}" height="{floor * count / highest:.1f}" fill="{color}"/>'
        for position, count in enumerate(counts)
    )
    anchors = ("start", "middle", "end")
    ticks = "".join(
        f'<text x="{_LEFT + (_WIDTH - _LEFT) * place / 2:.0f}" y="{floor + 24}" text-anchor="{anchor}">{label}</text>'
        for place, (label, anchor) in enumerate(zip(labels, anchors, strict=True))
    )
    axis = f'<line x1="{_LEFT}" y1="{floor + 8}" x2="{_WIDTH}" y2="{floor + 8}" stroke="#999"/>'
    top = f'<text x="{_LEFT - 4}" y="16" text-anchor="end">{_short(highest)}</text>'
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{bars}{axis}{ticks}{top}</svg>')


def _short(count: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)

"""Self-contained HTML page of `data check`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steelgen.charts import chart_style, to_svg
from steelgen.data.check import CheckReport
from steelgen.files import new_file
from steelgen.pages import embed_image, render


def save_page(path: Path, report: CheckReport) -> None:
    """Writes the check page: problems, statistics, plots and overlays, without external resources."""
    with new_file(path) as working:
        working.write_text(build_page(report), encoding="utf-8")


def build_page(report: CheckReport) -> str:
    """Returns the check page as HTML."""
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
        plots=_plot_all(report),
        class_names=info.class_names,
        palette=info.palette,
        overlays=[(caption, embed_image(image, "JPEG", quality=88)) for caption, image in report.thumbnails],
    )


def _list_classes(report: CheckReport) -> tuple[list[str], list[list[str]]]:
    """Builds the table of classes: column titles and rows."""
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


def _plot_all(report: CheckReport) -> list[tuple[str, Markup]]:
    """Plots the gray levels of each split, and the island sizes of each class in all splits."""
    plots = []
    for split, summary in report.splits.items():
        caption = f"gray levels, {split}"
        counts = summary.intensity.reshape(64, 4).sum(axis=1)
        plots.append((caption, _plot_histogram(caption, counts, np.linspace(0, 256, 65), "#555555")))
    for index, name in enumerate(report.info.class_names[1:], start=1):
        areas = [summary.island_areas[index] for summary in report.splits.values()]
        if sum(map(len, areas)):
            diameters = np.sqrt(4 * np.concatenate(areas) / np.pi)
            edges = np.geomspace(1, max(float(diameters.max()), 2) * 1.001, 33)
            color = "#{:02x}{:02x}{:02x}".format(*report.info.palette[index])
            caption = f"islands of {name}: equivalent diameter in px (logarithmic), {len(diameters)} islands"
            plots.append((caption, _plot_histogram(caption, np.histogram(diameters, edges)[0], edges, color)))
    return plots


def _plot_histogram(title: str, counts: NDArray[np.int64], edges: NDArray[np.float64], color: str) -> Markup:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with chart_style(title):
        figure = Figure((420 / 72, 170 / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=color)
        if edges[0] > 0:
            axes.set_xscale("log")
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return Markup(to_svg(figure))

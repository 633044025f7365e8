"""The check page: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.check import CheckReport
from steelgen.files import new_file

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 170, 46, 34

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
p.facts { color: #555; margin-top: 0 } .good { color: #00704e } .bad { color: #b3261e }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .25rem .8rem .25rem 0; text-align: left }
th { border-bottom: 1px solid #999; font-weight: 600 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
.plots figure { width: 420px } figcaption { font-size: .85rem; color: #444 }
.overlays { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: .8rem }
.overlays img { width: 100%; display: block }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
svg text { font: 11px system-ui, sans-serif; fill: #444 }
"""


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
    parts = [
        f"<h1>{escape(info.name)}</h1><p class=facts>{escape(' · '.join(facts))}</p>",
        _problems(report),
        "<h2>Classes</h2>",
        _class_table(report),
        "<h2>Distributions</h2><div class=plots>",
        *_plots(report),
        "</div><h2>Overlays</h2><p class=facts>",
        *(_swatch(color) + escape(name) + " &nbsp; " for name, color in _legend(report)),
        "</p><div class=overlays>",
        *(_figure(thumbnail.caption, thumbnail.image) for thumbnail in report.thumbnails),
        "</div>",
    ]
    head = f"<meta charset=utf-8><title>{escape(info.name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html>\n<html lang=en>{head}\n" + "\n".join(parts) + "\n</html>\n"


def _problems(report: CheckReport) -> str:
    if not report.problems:
        return "<h2 class=good>No problems</h2>"
    rows = [(problem.file, problem.message) for problem in report.problems]
    return f"<h2 class=bad>{len(rows)} problems</h2>" + _table(("file", "problem"), rows)


def _class_table(report: CheckReport) -> str:
    columns = ["class"]
    for split in report.splits:
        columns += [f"{split}: area %", "islands", "median area px"]
    rows: list[list[str | float]] = []
    for index, name in enumerate(report.info.class_names):
        row: list[str | float] = [name]
        for summary in report.splits.values():
            areas = summary.island_areas[index]
            row += [100 * summary.share(index), len(areas) if index else "–"]
            row += [float(np.median(areas)) if len(areas) else "–"]
        rows.append(row)
    ignored: list[str | float] = ["(ignored)"]
    for summary in report.splits.values():
        ignored += [100 * summary.ignored_pixels / max(summary.num_pixels, 1), "–", "–"]
    return _table(columns, [*rows, ignored])


def _plots(report: CheckReport) -> list[str]:
    """Grey levels of each split, and the size of the islands of each class over all splits."""
    plots = []
    for split, summary in report.splits.items():
        counts = summary.intensity.reshape(64, 4).sum(axis=1)
        plots.append(_histogram(f"grey levels, {split}", counts, ("0", "128", "255"), "#555"))
    for index, name in enumerate(report.info.class_names[1:], start=1):
        areas = np.concatenate([summary.island_areas[index] for summary in report.splits.values()])
        if len(areas):
            diameters = np.sqrt(4 * areas / np.pi)
            edges = np.geomspace(1, max(float(diameters.max()), 2) * 1.001, 33)
            labels = ("1", f"{np.sqrt(edges[-1]):.1f}", f"{edges[-1]:.0f}")
            color = "#{:02x}{:02x}{:02x}".format(*report.info.palette[index])
            caption = f"islands of {name}: equivalent diameter in px (logarithmic), {len(areas)} islands"
            plots.append(_histogram(caption, np.histogram(diameters, edges)[0], labels, color))
    return plots


def _histogram(caption: str, counts: NDArray[np.int64], labels: Sequence[str], color: str) -> str:
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
    drawing = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{bars}{axis}{ticks}{top}</svg>'
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    head = "".join(f"<th>{escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}" if value != "–" else "<td class=number>–"
    return f"<td class=number>{value:,}" if isinstance(value, int) else f"<td class=number>{value:,.2f}"


def _figure(caption: str, image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    name = escape(caption, quote=True)
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _legend(report: CheckReport) -> list[tuple[str, tuple[int, int, int]]]:
    return list(zip(report.info.class_names, report.info.palette, strict=True))[1:]


def _swatch(color: tuple[int, int, int]) -> str:
    return f'<span class=swatch style="background:rgb{color}"></span>'


def _short(count: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)

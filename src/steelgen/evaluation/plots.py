"""Charts as SVG and sheets of images as PNG, inside a page that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = {"generated": "#d55e00", "held_out": "#0072b2", "train": "#56b4e9"}
"""Okabe and Ito's, distinguishable with every common colour-vision deficiency; dashes tell them apart in grey."""

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 330, 220, 52, 36, 26


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    values: Sequence[float]
    color: str
    dashed: bool = False


def draw_chart(
    title: str,
    x: Sequence[float],
    curves: Sequence[Curve],
    x_label: str,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """An SVG line chart.

    Args:
        title: above the chart.
        x: (K,) positions, increasing.
        curves: lines of K values each.
        x_label: below the axis.
        band: lower and upper K values of a shaded band.

    Returns:
        The <svg> element.
    """
    every = np.array([*(curve.values for curve in curves), *(band or ())], dtype=np.float64)
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    low = 0.0 if 0 <= low < 0.3 * high else low
    high = high if high > low else low + 1

    def place(position: float, value: float) -> str:
        across = _LEFT + (position - x[0]) / max(x[-1] - x[0], 1e-12) * (_WIDTH - _LEFT - 12)
        up = _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)
        return f"{across:.1f},{up:.1f}"

    parts = [f'<text x="{_LEFT}" y="15" class="title">{html.escape(title)}</text>']
    for value in np.linspace(low, high, 4):
        start, end = place(x[0], value), place(x[-1], value)
        up = start.split(",")[1]
        parts.append(f'<polyline class="grid" points="{start} {end}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{float(up) + 3:.1f}" text-anchor="end">{value:.3g}</text>')
    for position in np.linspace(x[0], x[-1], 5):
        across = place(float(position), low).split(",")[0]
        parts.append(f'<text x="{across}" y="{_HEIGHT - _BOTTOM + 13}" text-anchor="middle">{position:.3g}</text>')
    parts.append(
        f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    if band:
        around = [place(p, v) for p, v in zip(x, band[0], strict=True)]
        around += [place(p, v) for p, v in reversed(list(zip(x, band[1], strict=True)))]
        parts.append(f'<polygon class="band" points="{" ".join(around)}"/>')
    for curve in curves:
        points = " ".join(place(p, v) for p, v in zip(x, curve.values, strict=True) if math.isfinite(v))
        dash = ' stroke-dasharray="5 3"' if curve.dashed else ""
        name = html.escape(curve.name)
        parts.append(f'<polyline points="{points}" stroke="{curve.color}"{dash}><title>{name}</title></polyline>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def embed_png(image: NDArray[np.uint8]) -> str:
    """(H, W) or (H, W, 3) uint8 as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def build_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], tile: int, gap: int = 4) -> NDArray[np.uint8]:
    """Images side by side on white.

    Args:
        rows: square images, (S, S) or (S, S, 3) uint8; every row has as many.
        tile: edge of each on the sheet, px; images are enlarged by whole pixels' repetition, or shrunk by area.
        gap: px between them.

    Returns:
        (H, W, 3) uint8.
    """
    step = tile + gap
    sheet = np.full((len(rows) * step - gap, len(rows[0]) * step - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            method = Image.Resampling.NEAREST if image.shape[0] < tile else Image.Resampling.BOX
            picture = Image.fromarray(image).convert("RGB").resize((tile, tile), method)
            sheet[i * step : i * step + tile, j * step : j * step + tile] = np.asarray(picture)
    return sheet

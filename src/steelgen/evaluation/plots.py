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
from PIL import Image, ImageDraw, ImageFont

COLORS = {"generated": "#d55e00", "held_out": "#0072b2", "train": "#56b4e9"}
"""Okabe and Ito's, distinguishable with every common colour-vision deficiency; dashes tell them apart in grey."""
INTERVAL_COLORS = ("#009e73", "#888888", "#d55e00")
"""An interval above 0, one that includes it, one below."""

_FEW = 6
"""So many positions are written one by one below an axis."""
_MARKED = 50
"""Up to so many points of a curve are marked by dots."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 330, 220, 52, 36, 26


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    values: Sequence[float]
    """NaN where there is none; the line goes on to the next one."""
    color: str
    dashed: bool = False
    spread: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper ends of a bar at each value; NaN where there is none."""


@dataclass(frozen=True)
class Frame:
    """Where values lie on a chart."""

    x: tuple[float, float]
    """First and last position."""
    y: tuple[float, float]
    """Lowest and highest value."""
    x_ticks: list[float]
    """Positions that are written below the axis."""

    def place(self, position: float, value: float) -> tuple[float, float]:
        """px from the left and from the top."""
        first, last = self.x
        low, high = self.y
        across = _LEFT + (position - first) / max(last - first, 1e-12) * (_WIDTH - _LEFT - 12)
        return across, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    @property
    def y_ticks(self) -> list[float]:
        """Values that are written beside the axis."""
        return [float(value) for value in np.linspace(*self.y, 4)]


def build_frame(x: Sequence[float], every: Sequence[Sequence[float]]) -> Frame:
    """The frame that holds all values; from 0 where they reach near it.

    Args:
        x: (K,) positions, increasing.
        every: all rows of K values.
    """
    values = np.array(every, dtype=np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    low = 0.0 if 0 <= low < 0.3 * high else low
    ticks = list(x) if len(x) <= _FEW else [float(position) for position in np.linspace(x[0], x[-1], 5)]
    return Frame((x[0], x[-1]), (low, high if high > low else low + 1), ticks)


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
    frame = build_frame(x, [*_list_values(curves), *(band or ())])

    def place(position: float, value: float) -> str:
        return ",".join(f"{px:.1f}" for px in frame.place(position, value))

    parts = [f'<text x="{_LEFT}" y="15" class="title">{html.escape(title)}</text>']
    for value in frame.y_ticks:
        start, end = place(x[0], value), place(x[-1], value)
        up = start.split(",")[1]
        parts.append(f'<polyline class="grid" points="{start} {end}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{float(up) + 3:.1f}" text-anchor="end">{value:.3g}</text>')
    for position in frame.x_ticks:
        across = place(position, frame.y[0]).split(",")[0]
        parts.append(
            f'<text x="{across}" y="{_HEIGHT - _BOTTOM + 13}" text-anchor="middle">{_show_position(position)}</text>'
        )
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
        for position, low, high in _list_bars(x, curve):
            bar = f"{place(position, low)} {place(position, high)}"
            parts.append(f'<polyline points="{bar}" stroke="{curve.color}"/>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def paint_chart(
    title: str,
    x: Sequence[float],
    curves: Sequence[Curve],
    x_label: str,
    scale: int = 3,
    names_on_top: bool = False,
) -> NDArray[np.uint8]:
    """The chart of `draw_chart` as pixels, with the names of its curves.

    Args:
        title: above the chart.
        x: (K,) positions, increasing.
        curves: lines of K values each.
        x_label: below the axis.
        scale: px of the picture a px of the SVG.
        names_on_top: write the curves' names at the right end of the top, for curves that fall; else of the bottom.

    Returns:
        (H, W, 3) uint8.
    """
    frame = build_frame(x, _list_values(curves))
    picture = Image.new("RGB", (_WIDTH * scale, _HEIGHT * scale), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(10 * scale)

    def place(position: float, value: float) -> tuple[float, float]:
        across, down = frame.place(position, value)
        return across * scale, down * scale

    def write(across: float, down: float, text: str, anchor: str, color: str = "#444444") -> None:
        pen.text((across * scale, down * scale), text, fill=color, font=font, anchor=anchor)

    write(_LEFT, 11, title, "lm", "#222222")
    for value in frame.y_ticks:
        pen.line([place(x[0], value), place(x[-1], value)], fill="#dddddd", width=scale)
        write(_LEFT - 5, frame.place(x[0], value)[1], f"{value:.3g}", "rm")
    for position in frame.x_ticks:
        text = _show_position(position)
        furthest = _WIDTH - 2 - font.getlength(text) / (2 * scale)
        write(min(frame.place(position, frame.y[0])[0], furthest), _HEIGHT - _BOTTOM + 9, text, "mm")
    write((_WIDTH + _LEFT) / 2, _HEIGHT - 9, x_label, "mm")
    for number, curve in enumerate(curves):
        points = [place(p, v) for p, v in zip(x, curve.values, strict=True) if math.isfinite(v)]
        pen.line(points, fill=curve.color, width=2 * scale)
        for position, low, high in _list_bars(x, curve):
            pen.line([place(position, low), place(position, high)], fill=curve.color, width=scale)
        for across, down in points if len(points) <= _MARKED else ():
            pen.ellipse([across - 3 * scale, down - 3 * scale, across + 3 * scale, down + 3 * scale], fill=curve.color)
        down = _TOP + 10 + 13 * number if names_on_top else _HEIGHT - _BOTTOM - 10 - 13 * number
        write(_WIDTH - 12, down, curve.name, "rm", curve.color)
    return np.asarray(picture)


def draw_intervals(title: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """An SVG chart of values with their intervals, one below the other, beside a line at 0.

    Args:
        title: above the chart.
        rows: name, value, lower and upper end of each.

    Returns:
        The <svg> element.
    """
    left = max([250, *(16 + 6 * len(row[0]) for row in rows)])
    width, top, step = left + 450, 26, 18
    height = top + step * len(rows) + 24
    low, high = min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows))
    span = high - low or 1.0

    def place(value: float) -> float:
        return left + (value - low) / span * (width - left - 20)

    parts = [f'<text x="5" y="15" class="title">{html.escape(title)}</text>']
    for value in np.linspace(low, high, 5):
        parts.append(f'<text x="{place(value):.1f}" y="{height - 6}" text-anchor="middle">{value:+.3f}</text>')
    parts.append(f'<polyline points="{place(0):.1f},{top - 6} {place(0):.1f},{height - 20}" stroke="#888"/>')
    for number, (name, value, lower, upper) in enumerate(rows):
        down = top + step * number + 6
        color = INTERVAL_COLORS[0] if lower > 0 else INTERVAL_COLORS[2] if upper < 0 else INTERVAL_COLORS[1]
        parts.append(f'<text x="{left - 8}" y="{down + 3}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<polyline points="{place(lower):.1f},{down} {place(upper):.1f},{down}" stroke="{color}"/>')
        parts.append(f'<circle cx="{place(value):.1f}" cy="{down}" r="3.5" fill="{color}"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _show_position(position: float) -> str:
    return f"{position:.0f}" if abs(position) >= 100 else f"{position:.3g}"


def _list_values(curves: Sequence[Curve]) -> list[Sequence[float]]:
    return [row for curve in curves for row in (curve.values, *(curve.spread or ()))]


def _list_bars(x: Sequence[float], curve: Curve) -> list[tuple[float, float, float]]:
    """Position, lower and upper end of each bar of a curve."""
    if curve.spread is None:
        return []
    return [bar for bar in zip(x, *curve.spread, strict=True) if all(map(math.isfinite, bar))]


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

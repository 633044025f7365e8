"""Charts of the benchmarks, as PNG."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 640, 480, 50, 230


def draw_curves(
    curves: dict[str, list[tuple[float, float]]], x_label: str, y_label: str, bold: Collection[str], path: Path
) -> None:
    """Draws lines through positive points on logarithmic axes.

    Args:
        curves: (x, y) points by name, at least one, in the order of x.
        x_label, y_label: what the axes show.
        bold: names of the curves to draw thicker, in strong colours.
        path: the .png file.
    """
    points = np.log10([point for curve in curves.values() for point in curve])
    low, high = points.min(axis=0) - 0.05, points.max(axis=0) + 0.05
    picture = Image.new("RGB", (_WIDTH + _LEGEND, _HEIGHT), "white")
    pen = ImageDraw.Draw(picture)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (np.log10(point) - low) / (high - low)
        return _MARGIN + x * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - y * (_HEIGHT - 2 * _MARGIN)

    pen.rectangle((_MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN), outline="black")
    pen.text((_WIDTH // 2 - 90, _HEIGHT - 20), f"{x_label} (log)", fill="black")
    pen.text((_MARGIN, 20), f"{y_label} (log)", fill="black")
    for exponent in range(int(np.floor(low[1])), int(np.ceil(high[1])) + 1):
        for value in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent):
            if low[1] <= np.log10(value) <= high[1]:
                pen.text((4, place((10 ** low[0], value))[1] - 6), f"{value:g}", fill="black")
    for x in sorted({x for curve in curves.values() for x, _ in curve}):
        pen.text((place((x, 10 ** low[1]))[0] - 10, _HEIGHT - _MARGIN + 6), f"{x:g}", fill="black")
    # By the last point, so that the legend stands in the order of the curves' ends.
    ordered = sorted(curves.items(), key=lambda item: -item[1][-1][1])
    thick = [name for name, _ in ordered if name in bold]
    thin = [name for name, _ in ordered if name not in bold]
    for index, (name, curve) in enumerate(ordered):
        alike, saturation = (thick, 230) if name in bold else (thin, 90)
        angle = alike.index(name) * 255 // len(alike)
        hue = Image.new("HSV", (1, 1), (angle, saturation, 170)).convert("RGB").getpixel((0, 0))
        pen.line([place(point) for point in curve], fill=hue, width=4 if name in bold else 2)
        for point in curve:
            x, y = place(point)
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=hue)
        pen.text((_WIDTH - 20, _MARGIN + 18 * index), f"{name}: {curve[-1][1]:.4g}", fill=hue)
    picture.save(path)

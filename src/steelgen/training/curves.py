"""curves.png: how the figures of a run went, from its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from steelgen.evaluation.plots import COLORS
from steelgen.files import new_file

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 320, 72, 16, 32, 36


class _Panel(NamedTuple):
    title: str
    names: tuple[str, ...]
    """Of values in metrics.jsonl."""


_PANELS = (
    _Panel("loss", ("loss", "val_loss")),
    _Panel("KID to held-out images, EfficientNet-Lite0", ("kid", "kid_floor")),
    _Panel("share of copies among drawn images", ("copies", "copies_floor")),
    _Panel("gradient norm", ("grad_norm",)),
)
_PALETTE = (COLORS["train"], COLORS["generated"])

Points = list[tuple[int, float]]


def save_curves(metrics: Path, path: Path) -> None:
    """Draws the curves that a metrics.jsonl holds; a panel without a point is left out.

    Args:
        metrics: one JSON object a line, with `step`.
        path: the PNG.
    """
    curves: dict[str, Points] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.items():
            curves.setdefault(name, []).append((row["step"], value))
    shown = [panel for panel in _PANELS if any(name in curves for name in panel.names)]
    columns = min(2, len(shown))
    rows = -(-len(shown) // 2)
    sheet = Image.new("RGB", (columns * _WIDTH, rows * _HEIGHT), "white")
    for number, panel in enumerate(shown):
        lines = [(name, curves[name]) for name in panel.names if name in curves]
        sheet.paste(_draw_panel(panel.title, lines), ((number % 2) * _WIDTH, number // 2 * _HEIGHT))
    with new_file(path) as working:
        sheet.save(working)


def _draw_panel(title: str, curves: Sequence[tuple[str, Points]]) -> Image.Image:
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    steps = [step for _, points in curves for step, _ in points]
    values = [value for _, points in curves for _, value in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1

    def place(step: float, value: float) -> tuple[float, float]:
        across = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    draw.text((_LEFT, 8), title, "black", font)
    for part in range(5):
        value, step = low + part / 4 * (high - low), first + part / 4 * (last - first)
        _, up = place(first, value)
        across, _ = place(step, low)
        draw.line([(_LEFT, up), (_WIDTH - _RIGHT, up)], "#dddddd")
        draw.text((_LEFT - 6, up), f"{value:.3g}", "#444444", font, anchor="rm")
        draw.text((across, _HEIGHT - _BOTTOM + 6), f"{step:.0f}", "#444444", font, anchor="ma")
    for number, (name, points) in enumerate(curves):
        places = [place(*point) for point in points]
        draw.line(places, _PALETTE[number], 2)
        for x, y in places if len(places) < 50 else ():
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], _PALETTE[number])
        draw.text((_WIDTH - _RIGHT - 110 * (len(curves) - number), 8), name, _PALETTE[number], font)
    return picture

"""curves.png: how the figures of a run went, from its metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.charts import COLORS, Curve, plot_pixels
from steelgen.data.images import save_image
from steelgen.runs import read_metrics

_SCALE = 2
"""px of the picture a px of a chart."""


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

Points = dict[str, dict[int, float]]
"""Values by name and step."""


def save_curves(metrics: Path, path: Path) -> None:
    """Draws the curves that a metrics.jsonl holds, two charts a row; without any there is no picture.

    Args:
        metrics: one JSON object a line, with `step`.
        path: the PNG.
    """
    picture = plot_curves(load_points(metrics))
    if picture is not None:
        save_image(path, picture)


def plot_curves(points: Points) -> NDArray[np.uint8] | None:
    """The charts of the figures of a run as (H, W, 3) RGB, two a row; None without any."""
    charts = [_paint(panel, points) for panel in _PANELS if any(name in points for name in panel.names)]
    if not charts:
        return None
    if len(charts) > 1 and len(charts) % 2:
        charts.append(np.full_like(charts[0], 255))
    rows = [np.hstack(charts[start : start + 2]) for start in range(0, len(charts), 2)]
    return np.vstack(rows)


def load_points(metrics: Path) -> Points:
    """The finite values of a metrics.jsonl; lines that hold none, as one just being written, are passed over."""
    points: Points = {}
    for _, row in read_metrics(metrics):
        for name, value in row.items():
            if math.isfinite(value):
                points.setdefault(name, {})[int(row["step"])] = value
    return points


def _paint(panel: _Panel, points: Points) -> NDArray[np.uint8]:
    shown = [(name, points[name]) for name in panel.names if name in points]
    steps = sorted({step for _, values in shown for step in values})
    curves = [
        Curve(name, [values.get(step, math.nan) for step in steps], color)
        for (name, values), color in zip(shown, _PALETTE, strict=False)
    ]
    return plot_pixels(panel.title, steps, curves, "step", _SCALE)

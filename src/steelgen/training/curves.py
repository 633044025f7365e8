"""curves.png: plots of a run's metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.charts import COLORS, Curve, plot_pixels
from steelgen.data.images import save_image
from steelgen.runs import read_metrics

_SCALE = 2
"""Pixels of the picture per pixel of a chart."""
_PANELS = {
    "loss": ("loss", "val_loss"),
    "KID to held-out images, EfficientNet-Lite0": ("kid", "kid_floor"),
    "share of copies among generated images": ("copies", "copies_floor"),
    "mean IoU of the masks in generated images": ("mask_iou",),
    "adaptive augmentation": ("r_t", "ada_p"),
    "gradient norm": ("grad_norm",),
}
"""Keys in metrics.jsonl by title of the chart."""
_BY_PHASE = ("loss", "grad_norm")
"""Keys that have the name of a phase behind them if training has several."""
_PALETTE = (COLORS["train"], COLORS["generated"], COLORS["held_out"])

Points = dict[str, dict[int, float]]
"""Values by name and step."""


def save_curves(metrics: Path, path: Path) -> None:
    """Plots the curves of a metrics.jsonl as a PNG; writes nothing if there are none."""
    picture = plot_curves(load_points(metrics))
    if picture is not None:
        save_image(path, picture)


def plot_curves(points: Points) -> NDArray[np.uint8] | None:
    """Plots the charts of a run as (H, W, 3) RGB, two per row; None if there are none."""
    charts = []
    for title, names in _PANELS.items():
        phases = sorted(name for name in points for key in _BY_PHASE if key in names and name.startswith(f"{key}_"))
        shown = {name: points[name] for name in (*names, *phases) if name in points}
        steps = sorted({step for values in shown.values() for step in values})
        curves = [
            Curve(name, [values.get(step, math.nan) for step in steps], color)
            for (name, values), color in zip(shown.items(), _PALETTE, strict=False)
        ]
        if curves:
            charts.append(plot_pixels(title, steps, curves, "step", _SCALE))
    if not charts:
        return None
    if len(charts) > 1 and len(charts) % 2:
        charts.append(np.full_like(charts[0], 255))
    rows = [np.hstack(charts[start : start + 2]) for start in range(0, len(charts), 2)]
    return np.vstack(rows)


def load_points(metrics: Path) -> Points:
    """Reads the finite values of a metrics.jsonl; incomplete lines are skipped."""
    points: Points = {}
    for _, row in read_metrics(metrics):
        for name, value in row.items():
            if math.isfinite(value):
                points.setdefault(name, {})[int(row["step"])] = value
    return points

"""Figures: metric values with their floor, interval, N and seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

CLASSES_PER_TABLE = 4
"""Classes side by side in one table; more do not fit on A4."""


@dataclass(frozen=True)
class Figure:
    """The value of a metric, and what is needed to judge it."""

    section: str
    """fidelity, faithfulness, microstructure, memorization, descriptors or utility."""
    metric: str
    """Name of the metric, with its features or class where there are several."""
    compared: str
    """The two sets, as in "generated vs test"."""
    value: float
    floor: float | None
    """The same metric between two disjoint sets of real images, the best value to expect."""
    n: tuple[int, int]
    """Number of images in each of the two sets."""
    seed: int
    better: str
    """lower, higher, or "near floor" where the floor is the target."""
    spread: float | None = None
    """Standard deviation of the value over subsets, as is customary for KID."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value over other images of the same kind; see docs/evaluation.md."""
    note: str | None = None
    """Caveat shown with the value."""


def to_json(value: Any) -> Any:
    """Converts arrays to lists, NumPy numbers to numbers, and NaN and infinity to null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value

"""One number with everything a reader needs to judge it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

CLASSES_ABREAST = 4
"""In a table that is as wide as a sheet of paper."""


@dataclass(frozen=True)
class Figure:
    """A figure of merit beside its floor."""

    section: str
    """fidelity, faithfulness, microstructure, memorization, descriptors, utility."""
    metric: str
    """Its name, with the features or the class where there are several."""
    compared: str
    """The two sets, "generated vs test"."""
    value: float
    floor: float | None
    """The same metric between two disjoint sets of real images: as good as it can get."""
    n: tuple[int, int]
    """Images in each of the two sets."""
    seed: int
    better: str
    """lower or higher; "near floor" for a quantity whose floor is its aim."""
    spread: float | None = None
    """Standard deviation of the value over subsets, as is customary for KID."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value, over other images of the same kind; see docs/evaluation.md."""
    note: str | None = None
    """What a reader must know before using it."""


def figure_to_json(figure: Figure) -> dict[str, Any]:
    """JSON values; a figure that is not defined is null, never NaN."""
    return {key: to_json(value) for key, value in asdict(figure).items()}


def to_json(value: Any) -> Any:
    """Arrays, NumPy numbers and NaN as JSON values: lists, numbers and null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value

"""One number with everything a reader needs to judge it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of merit beside its floor."""

    section: str
    """fidelity, faithfulness, microstructure, memorisation."""
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
    """Standard deviation of the value, over subsets or by bootstrap."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value."""


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


def bootstrap_interval(values: Any, seed: int = 0, num_draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron and Tibshirani 1993, ch. 13).

    Args:
        values: (N,) independent values; NaNs are left out.
        seed: of the draws.
        num_draws: resamples.

    Returns:
        Lower and upper end; NaN where nothing is defined.
    """
    import numpy as np

    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if defined.size == 0:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(defined), size=(num_draws, len(defined)))
    low, high = np.percentile(defined[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)

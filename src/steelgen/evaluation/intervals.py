"""95 % confidence intervals of figures, over other images of the same kind."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 400
"""Bootstrap resamples per interval."""

_QUANTILE = 1.959964
"""97.5 % quantile of the standard normal distribution."""

Interval = tuple[float, float]


def resample_weights(count: int, seed: int, stream: int = 0, num_resamples: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """How often each image occurs in each bootstrap resample (Efron and Tibshirani 1993, ch. 6).

    A figure that is a function of sums over images needs one matrix product for all resamples.

    Args:
        stream: makes the resamples of several sets independent under one seed.

    Returns:
        (1 + num_resamples, count); the first row is all ones, the set itself.
    """
    resampled = np.random.default_rng([seed, stream]).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    return np.concatenate([np.ones((1, count)), resampled])


def center_interval(values: NDArray, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Percentile interval of bootstrap values, corrected for the bias of resampling.

    A distance between two sets grows when either is replaced by a resample of itself; the interval is shifted back by
    the mean of that growth, so that it contains the figure.

    Args:
        values: (1 + B,), the first one of the set itself, as in `resample_weights`.
        lowest, highest: range of the figure.

    Returns:
        Lower and upper end; NaN if the figure is undefined, or undefined in over 10 % of the resamples: it then depends
        on one or two images, and resampling cannot estimate its spread.
    """
    value, resampled = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not math.isfinite(value) or len(resampled) < 0.9 * len(values[1:]):
        return math.nan, math.nan
    low, high = np.percentile(resampled, [2.5, 97.5]) - (resampled.mean() - value)
    return float(np.clip(low, lowest, highest)), float(np.clip(high, lowest, highest))


def normal_interval(value: float, error: float, lowest: float = -math.inf) -> Interval:
    """Interval of an estimate with a known standard error."""
    return max(lowest, value - _QUANTILE * error), value + _QUANTILE * error


def wilson_interval(share: float, count: int) -> Interval:
    """Interval of a share of `count` independent images (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    Unlike share ± 1.96 standard errors it has nonzero width for a share of 0 or 1.
    """
    z2 = _QUANTILE**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _QUANTILE / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap_interval(values: NDArray, seed: int = 0, num_resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval of the mean of (N,) values, NaNs excluded (Efron and Tibshirani 1993, ch. 13)."""
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if defined.size == 0:
        return math.nan, math.nan
    means = resample_weights(len(defined), seed, num_resamples=num_resamples)[1:] @ defined / len(defined)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

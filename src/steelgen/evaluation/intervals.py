"""95 % intervals: how far a figure would move with other images of the same kind."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 400
"""Bootstrap resamples of each interval."""

_QUANTILE = 1.959964
"""Of the normal distribution, for 95 %."""

Interval = tuple[float, float]


def resample_weights(count: int, seed: int, stream: int = 0, num_resamples: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """How often each image occurs in each bootstrap resample (Efron and Tibshirani 1993, ch. 6).

    A figure that is a function of sums over images needs one matrix product for all of its resamples.

    Args:
        count: images in the set.
        seed: of the draws.
        stream: tells sets apart whose draws must not be the same.
        num_resamples: resamples.

    Returns:
        (1 + num_resamples, count); the first row is all ones: the set itself.
    """
    draws = np.random.default_rng([seed, stream]).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    return np.concatenate([np.ones((1, count)), draws])


def center_interval(values: NDArray, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """The percentile interval of bootstrap values, less the bias that resampling adds.

    A distance between two sets grows when either is replaced by a resample of itself; the interval is shifted back by
    the mean of that growth, so that it lies around the figure.

    Args:
        values: (1 + B,), the first of the set itself, as by `resample_weights`.
        lowest: limits of what the figure can be.
        highest: likewise.

    Returns:
        Lower and upper end; NaN where the figure is not defined, or not so in more than one draw in ten: then it hangs
        on one or two images, and resampling does not know how far.
    """
    value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not math.isfinite(value) or len(draws) < 0.9 * len(values[1:]):
        return math.nan, math.nan
    low, high = np.percentile(draws, [2.5, 97.5]) - (draws.mean() - value)
    return float(np.clip(low, lowest, highest)), float(np.clip(high, lowest, highest))


def normal_interval(value: float, error: float, lowest: float = -math.inf) -> Interval:
    """The interval of an estimate with a known standard error."""
    return max(lowest, value - _QUANTILE * error), value + _QUANTILE * error


def wilson_interval(share: float, count: int) -> Interval:
    """Interval of a share of `count` independent images (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    Unlike share ± 1.96 standard errors it has a width also where the share is 0 or 1.
    """
    z2 = _QUANTILE**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _QUANTILE / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap_interval(values: NDArray, seed: int = 0, num_resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, ch. 13).

    Args:
        values: (N,) independent values; NaNs are left out.
        seed: of the draws.
        num_resamples: resamples.

    Returns:
        Lower and upper end; NaN where nothing is defined.
    """
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if defined.size == 0:
        return math.nan, math.nan
    means = resample_weights(len(defined), seed, num_resamples=num_resamples)[1:] @ defined / len(defined)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

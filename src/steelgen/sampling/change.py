"""Where a translated image differs from its source, beyond brightness, contrast and grain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CLIPPED_FITS = 5
"""Fits of the gray levels, each without the pixels that stand out from the one before."""
_CLIP = 3.0
"""Standard deviations from which on pixels stand out."""
_MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_HEIGHT_PERCENTILE = 90
"""Of the changes in a region; the largest one may be a speck."""
_LEAST_DEVIATION = 0.5
"""In gray levels; images of 8 bits cannot differ by less."""


def compute_change(
    source: NDArray[np.uint8], translated: NDArray[np.uint8], smoothing: float = 1.0
) -> NDArray[np.float64]:
    """Computes how far each pixel's change stands out from that of the whole image.

    The gray levels of the source are fitted to those of the translated image by a line (another brightness or contrast
    is no change of the material), and the difference is smoothed and divided by its own standard deviation, which is
    that of grain. Both are robust: pixels that stand out do not count.

    Args:
        source, translated: (H, W) or (H, W, 3) of the same size.
        smoothing: standard deviation of the Gaussian filter in px; 0 disables it.

    Returns:
        (H, W), absolute values in standard deviations.
    """
    from scipy.ndimage import gaussian_filter

    before, after = (
        image.astype(np.float64).reshape(*image.shape[:2], -1).mean(axis=2) for image in (source, translated)
    )
    kept = np.ones(before.shape, bool)
    difference = after - before
    for _ in range(_CLIPPED_FITS):
        gain, offset = _fit_line(before[kept], after[kept])
        difference = after - gain * before - offset
        kept = np.abs(difference) <= _CLIP * _estimate_deviation(difference)
    if smoothing:
        difference = gaussian_filter(difference, smoothing, mode="nearest")
    return np.abs(difference - np.median(difference)) / _estimate_deviation(difference)


def compute_levels(change: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Computes the change at which each pixel counts as changed: half the height of the region that it belongs to.

    A smoothed edge is at half of its height where the edge is; the threshold alone would widen strong changes.

    Args:
        change: (H, W), from `compute_change`.
        threshold: least change of a region, in standard deviations.

    Returns:
        (H, W), at least `threshold`.
    """
    from scipy.ndimage import label

    regions, count = label(change >= threshold, np.ones((3, 3)))
    levels = np.full(count + 1, threshold, np.float64)
    for number in range(1, count + 1):
        levels[number] = max(threshold, np.percentile(change[regions == number], _HEIGHT_PERCENTILE) / 2)
    return levels[regions]


def _fit_line(given: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """Fits `wanted` by gain · `given` + offset; the gain is 1 if all of `given` are alike."""
    spread = float(given.var())
    gain = float(np.mean((given - given.mean()) * (wanted - wanted.mean()))) / spread if spread else 1.0
    return gain, float(wanted.mean()) - gain * float(given.mean())


def _estimate_deviation(values: NDArray[np.float64]) -> float:
    return max(_MAD_TO_DEVIATION * float(np.median(np.abs(values - np.median(values)))), _LEAST_DEVIATION)

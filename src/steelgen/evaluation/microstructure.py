"""Microstructure descriptors of one class in a stack of masks.

Every function takes `phase`, (N, H, W) bool, True for pixels of the class, and returns values by image, so that sets
can be resampled. Lengths are in pixels. Definitions: Torquato, Random Heterogeneous Materials (2002), ch. 2 and 12.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from steelgen.data.islands import measure_islands

Phase = NDArray[np.bool_]

_BATCH = 32
"""Images per FFT, to limit memory."""

ISLAND_PROPERTIES = ("area", "diameter", "aspect_ratio", "circularity", "orientation")
MIN_ISLAND_AREA = 9
"""In px; smaller islands have no meaningful shape."""


def compute_s2(phase: Phase, max_distance: int) -> NDArray[np.float64]:
    """Two-point correlation S2(r): the probability that two points at distance r are both in the phase.

    Computed by FFT with zero padding. Each displacement is normalized by its number of pairs within the image, so no
    periodicity is assumed, and averaged over all displacements whose length rounds to r.

    Args:
        max_distance: largest r in px, below the edge of the image.

    Returns:
        (N, max_distance + 1) for r = 0, 1 …; S2(0) is the phase fraction. The mean over images is that of the set.
    """
    shape, kernel = _build_s2_kernel(*phase.shape[1:], max_distance)
    curves = []
    for start in range(0, len(phase), _BATCH):
        spectrum = scipy.fft.rfft2(phase[start : start + _BATCH].astype(np.float32), shape)
        power = spectrum.real**2 + spectrum.imag**2
        curves.append(power.reshape(len(power), -1) @ kernel)
    return np.clip(np.concatenate(curves), 0, 1).astype(np.float64)


@lru_cache(maxsize=1)
def _build_s2_kernel(height: int, width: int, max_distance: int) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """Matrix from the power spectrum of a padded image to S2(r): inverse transform and mean over displacements.

    Returns:
        The padded shape (P, Q); (P · (Q // 2 + 1), max_distance + 1).
    """
    shape = tuple(scipy.fft.next_fast_len(edge + max_distance, real=True) for edge in (height, width))
    # S2 is even, so half of the displacements suffice.
    dy, dx = np.arange(max_distance + 1)[:, None], np.arange(-max_distance, max_distance + 1)[None, :]
    pairs = (height - dy) * (width - np.abs(dx))
    distance = np.where((dy == 0) & (dx < 0), -1, np.rint(np.hypot(dy, dx)))
    across = np.arange(shape[1] // 2 + 1)
    # rfft2 omits the redundant half-plane.
    twice = np.where((across == 0) | (2 * across == shape[1]), 1.0, 2.0) / (shape[0] * shape[1])
    kernel = np.empty((shape[0] * len(across), max_distance + 1), np.float32)
    for r in range(max_distance + 1):
        ring = np.zeros(shape)
        ring[dy, dx] = (distance == r) / pairs[distance == r].sum()
        kernel[:, r] = (scipy.fft.rfft2(ring).real * twice).ravel()
    return shape, kernel


def compute_lineal_path(phase: Phase, max_length: int) -> NDArray[np.float64]:
    """Lineal path L(z): the probability that a segment of z pixels along a row or column is in the phase.

    Args:
        max_length: largest z in px, at most the shorter edge of the image.

    Returns:
        (N, max_length) for z = 1, 2 …; L(1) is the phase fraction. The mean over images is that of the set.
    """
    lengths = np.arange(1, max_length + 1)
    counts = count_runs(phase)
    # A run of n pixels contains n - z + 1 segments of z.
    longer = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    segments = longer[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1 : max_length + 1]
    height, width = phase.shape[1:]
    return segments / (height * (width - lengths + 1) + width * (height - lengths + 1))


def compute_intercepts(phase: Phase) -> NDArray[np.float64]:
    """Intercepts of the phase on all rows and columns; one cut by the image border counts half, as in ASTM E112, 13.3.

    Returns:
        (N, 2) total length (px) and number; the ratio of their sums is the mean intercept l̄ of a set.
    """
    number = np.zeros(len(phase))
    for lines in (phase, phase.transpose(0, 2, 1)):
        starts = (lines[..., 1:] & ~lines[..., :-1]).sum(axis=(1, 2)) + lines[..., 0].sum(axis=1)
        number += starts - 0.5 * (lines[..., 0].sum(axis=1) + lines[..., -1].sum(axis=1))
    return np.stack([2.0 * phase.sum(axis=(1, 2)), number], axis=1)


def compute_mean_intercept(intercepts: NDArray) -> float:
    """Mean intercept length l̄ of a set in px, from `compute_intercepts`; NaN if the phase does not occur."""
    length, number = intercepts.sum(axis=0)
    return float(length / number) if number else math.nan


def compute_grain_size_number(mean_intercept_px: float, pixel_size_um: float) -> float:
    """ASTM E112 grain-size number G = -6.643856·log10(l̄) - 3.288, l̄ in mm."""
    return -6.643856 * math.log10(mean_intercept_px * pixel_size_um / 1000) - 3.288


def compute_boundary_density(phase: Phase) -> NDArray[np.float64]:
    """(N,) boundary length of the phase per area, in px⁻¹.

    By Cauchy-Crofton, π/4 × the crossings of rows and columns: unbiased for isotropic boundaries, where counting pixel
    edges gives 27 % too much.
    """
    across = (phase[:, :, 1:] != phase[:, :, :-1]).sum(axis=(1, 2))
    along = (phase[:, 1:] != phase[:, :-1]).sum(axis=(1, 2))
    height, width = phase.shape[1:]
    return math.pi / 4 * (across / (height * (width - 1)) + along / ((height - 1) * width))


def compute_islands(phase: Phase) -> dict[str, NDArray[np.float64]]:
    """Properties of the islands of at least 9 px that do not touch the image border.

    Returns:
        One value per island: `area` (px²), `diameter` of the circle of equal area (px), `aspect_ratio` (length to width
        of the ellipse of equal second moments; block-type ≈ 1, film-like high), `circularity` (4π·area / perimeter², at
        most 1), `orientation` (degrees from the horizontal, [0, 180)), `image` (its index).
    """
    parts = []
    for image in phase:
        found = measure_islands(image)
        kept = found.whole & (found.area >= MIN_ISLAND_AREA)
        area, perimeter = found.area[kept], _measure_perimeters(found.labels, len(kept))[kept]
        part = {
            "area": area,
            "diameter": np.sqrt(4 * area / math.pi),
            "aspect_ratio": found.aspect_ratio[kept],
            "circularity": np.minimum(4 * math.pi * area / np.maximum(perimeter, 1e-9) ** 2, 1),
            "orientation": np.degrees(-found.angle[kept]) % 180,  # rows point down, angles up
        }
        parts.append(part)
    islands = {name: np.concatenate([part[name] for part in parts]) for name in ISLAND_PROPERTIES}
    islands["image"] = np.repeat(np.arange(len(phase), dtype=np.float64), [len(part["area"]) for part in parts])
    return islands


def _measure_perimeters(labels: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """(count,) perimeters in px of labels 1 to count, by Cauchy-Crofton: π/4 × runs per line distance, 4 directions.

    Islands do not touch, so the next pixel is of the same island or none. Too short for islands at the image border.
    """
    here, perimeters = labels[1:, 1:-1], np.zeros(count + 1)
    for row, column in ((0, -1), (-1, 0), (-1, -1), (-1, 1)):
        before = labels[1 + row : labels.shape[0] + row, 1 + column : labels.shape[1] - 1 + column]
        starts = np.bincount(here[(here > 0) & (before == 0)], minlength=count + 1)
        perimeters += math.pi / 4 * starts / math.hypot(row, column)
    return perimeters[1:]


def count_runs(phase: Phase, complete: bool = False) -> NDArray[np.int64]:
    """Number of runs of the phase along rows and columns by length.

    Args:
        complete: count only chords, that is runs that are not cut by the image border.

    Returns:
        (N, max(H, W) + 1) runs of 0, 1, 2 … px in each image.
    """
    longest = max(phase.shape[1:])
    counts = np.zeros(len(phase) * (longest + 1), np.int64)
    for lines in (phase, phase.transpose(0, 2, 1)):
        padded = np.pad(lines, ((0, 0), (0, 0), (1, 1)))
        change = padded[..., 1:] != padded[..., :-1]
        # The changes along a line alternate between start and end of a run.
        image, _, position = np.nonzero(change)
        image, start, end = image[::2], position[::2], position[1::2]
        kept = (start > 0) & (end < lines.shape[2]) if complete else slice(None)
        counts += np.bincount((image * (longest + 1) + end - start)[kept], minlength=len(counts))
    return counts.reshape(len(phase), longest + 1)

"""Descriptors of microstructure, of one class in a stack of masks.

Every function takes `phase`, (N, H, W) bool: True where a pixel belongs to the class. Lengths are in pixels.
Definitions follow Torquato, Random Heterogeneous Materials (2002), chapters 2 and 12.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray
from skimage.measure import regionprops_table

Phase = NDArray[np.bool_]

ISLAND_PROPERTIES = ("area", "diameter", "aspect_ratio", "circularity", "orientation")
MIN_ISLAND_AREA = 9
"""px; of smaller islands a shape is not to be had."""


def compute_phase_fractions(phase: Phase) -> NDArray[np.float64]:
    """(N,) area share of the class in each image."""
    return phase.mean(axis=(1, 2))


def compute_s2(phase: Phase, max_distance: int) -> NDArray[np.float64]:
    """Two-point correlation S2(r): the probability that two points at distance r both lie in the phase.

    By FFT with zero padding, each displacement normalised by the number of pairs it has within the image:
    no periodicity is assumed. Averaged over all displacements whose length rounds to r, and over the images.

    Args:
        phase: (N, H, W) bool.
        max_distance: largest r in px, below the edge of the image.

    Returns:
        (max_distance + 1,) for r = 0, 1 …; S2(0) is the phase fraction.
    """
    height, width = phase.shape[1:]
    shape = [scipy.fft.next_fast_len(height + max_distance, real=True)]
    shape.append(scipy.fft.next_fast_len(width + max_distance, real=True))
    correlation = np.zeros(shape)
    for image in phase:
        spectrum = scipy.fft.rfft2(image.astype(np.float32), shape)
        correlation += scipy.fft.irfft2((spectrum * spectrum.conj()).real, shape)
    # Displacements (dy, dx) with dy ≥ 0 are enough: S2 is even.
    dy = np.arange(max_distance + 1)
    dx = np.arange(-max_distance, max_distance + 1)
    together = correlation[dy[:, None], dx[None, :]]
    pairs = len(phase) * (height - dy)[:, None] * (width - np.abs(dx))[None, :]
    distance = np.rint(np.hypot(dy[:, None], dx[None, :])).astype(np.int64)
    within = distance <= max_distance
    total = np.bincount(distance[within], together[within])
    return np.clip(total / np.bincount(distance[within], pairs[within].astype(np.float64)), 0, 1)


def compute_lineal_path(phase: Phase, max_length: int) -> NDArray[np.float64]:
    """Lineal path L(z): the probability that a segment of z pixels, along a row or a column, lies in the phase.

    Args:
        phase: (N, H, W) bool.
        max_length: largest z in px, at most the edge of the image.

    Returns:
        (max_length,) for z = 1, 2 …; L(1) is the phase fraction.
    """
    lengths = np.arange(1, max_length + 1)
    runs = np.concatenate([_run_lengths(phase), _run_lengths(phase.transpose(0, 2, 1))])
    counts = np.bincount(runs, minlength=max_length + 1)
    # A run of n pixels holds n - z + 1 segments of z.
    longer = counts[::-1].cumsum()[::-1]
    segments = longer[::-1].cumsum()[::-1][1 : max_length + 1]
    height, width = phase.shape[1:]
    places = len(phase) * (height * (width - lengths + 1) + width * (height - lengths + 1))
    return segments / places


def compute_chords(phase: Phase) -> NDArray[np.int64]:
    """Lengths (px) of all chords: runs of the phase along rows and columns, between two of its boundaries.

    Chords that an edge of the image cuts are left out, since their length is not known.
    """
    rows = _run_lengths(phase, complete=True)
    return np.concatenate([rows, _run_lengths(phase.transpose(0, 2, 1), complete=True)])


def compute_mean_intercept(phase: Phase) -> float:
    """Mean intercept length l̄ in px: length of test lines within the phase over the number of its intercepts.

    Test lines are all rows and columns; an intercept that an edge of the image cuts counts one half, as in ASTM
    E112, 13.3. NaN where the phase does not occur.
    """
    count = 0.0
    for lines in (phase, phase.transpose(0, 2, 1)):
        padded = np.pad(lines, ((0, 0), (0, 0), (1, 1)))
        starts = (np.diff(padded.astype(np.int8), axis=2) == 1).sum()
        count += starts - 0.5 * (lines[..., 0].sum() + lines[..., -1].sum())
    return 2 * float(phase.sum()) / count if count else math.nan


def compute_grain_size_number(mean_intercept_px: float, pixel_size_um: float) -> float:
    """ASTM E112 grain-size number G = -6.643856·log10(l̄) - 3.288, l̄ in mm."""
    return -6.643856 * math.log10(mean_intercept_px * pixel_size_um / 1000) - 3.288


def compute_boundary_density(phase: Phase) -> NDArray[np.float64]:
    """(N,) interface length of the phase per area, in px⁻¹.

    By Cauchy-Crofton, length = π/4 × the crossings of rows and columns: without bias for isotropic boundaries,
    where counting pixel edges would be 27 % too long.
    """
    across = (phase[:, :, 1:] != phase[:, :, :-1]).sum(axis=(1, 2))
    along = (phase[:, 1:] != phase[:, :-1]).sum(axis=(1, 2))
    height, width = phase.shape[1:]
    return math.pi / 4 * (across / (height * (width - 1)) + along / ((height - 1) * width))


def compute_islands(phase: Phase) -> dict[str, NDArray[np.float64]]:
    """Connected regions (8 neighbours) of the phase that touch no edge of the image and have 9 pixels or more.

    Returns:
        One value an island: `area` (px²), `diameter` of the circle of equal area (px), `aspect_ratio` (length to
        width of the ellipse of equal second moments; block-type ≈ 1, film-like high), `circularity` (4π·area /
        perimeter², at most 1), `orientation` (degrees from the horizontal, [0, 180)); `image`, its index.
    """
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*ISLAND_PROPERTIES, "image")}
    wanted = ("label", "bbox", "area", "axis_major_length", "axis_minor_length", "perimeter_crofton", "orientation")
    height, width = phase.shape[1:]
    for index, image in enumerate(phase):
        labels, _ = scipy.ndimage.label(image, structure=np.ones((3, 3)))
        table = regionprops_table(labels, properties=wanted)
        whole = (table["bbox-0"] > 0) & (table["bbox-1"] > 0) & (table["bbox-2"] < height) & (table["bbox-3"] < width)
        kept = whole & (table["area"] >= MIN_ISLAND_AREA)
        area = table["area"][kept].astype(np.float64)
        parts["area"].append(area)
        parts["diameter"].append(np.sqrt(4 * area / math.pi))
        # A straight line of pixels has no minor axis in the moments, but it is a pixel wide.
        parts["aspect_ratio"].append(table["axis_major_length"][kept] / np.maximum(table["axis_minor_length"][kept], 1))
        perimeter = np.maximum(table["perimeter_crofton"][kept], 1e-9)
        parts["circularity"].append(np.minimum(4 * math.pi * area / perimeter**2, 1))
        # skimage measures from the vertical axis, rows pointing down.
        parts["orientation"].append(np.degrees(table["orientation"][kept] + math.pi / 2) % 180)
        parts["image"].append(np.full(area.shape, index, np.float64))
    return {name: np.concatenate(values) for name, values in parts.items()}


def compute_axial_wasserstein(first: NDArray, second: NDArray) -> float:
    """Wasserstein-1 distance of two samples of orientations (degrees, period 180) around the circle, in degrees.

    The cumulative difference less its median, integrated (Rabin et al. 2011, J. Math. Imaging Vis. 41, eq. 6), on
    bins of 1°. At most 45; NaN where a sample is empty.
    """
    if not len(first) or not len(second):
        return math.nan
    shares = [np.bincount(values.astype(np.int64) % 180, minlength=180) / len(values) for values in (first, second)]
    difference = np.cumsum(shares[0] - shares[1])
    return float(np.abs(difference - np.median(difference)).sum())


def _run_lengths(phase: Phase, complete: bool = False) -> NDArray[np.int64]:
    """Lengths of the runs along the last axis; `complete` leaves out those that touch either end of their line."""
    padded = np.pad(phase, ((0, 0), (0, 0), (1, 1))).reshape(-1, phase.shape[2] + 2)
    change = np.diff(padded.astype(np.int8), axis=1)
    start, end = np.nonzero(change == 1)[1], np.nonzero(change == -1)[1]
    return (end - start)[(start > 0) & (end < phase.shape[2])] if complete else end - start

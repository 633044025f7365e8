"""Distances between the microstructures of two sets of masks, for all resamples at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.microstructure import (
    ISLAND_PROPERTIES,
    Phase,
    compute_boundary_density,
    compute_intercepts,
    compute_islands,
    compute_lineal_path,
    compute_s2,
    count_runs,
)

_MAX_VALUES = 4_000_000
"""Largest array, in values, in `compute_wasserstein`."""


@dataclass(frozen=True)
class Structure:
    """Descriptors of one class in each of N images."""

    fraction: NDArray[np.float64]
    """(N,) phase fraction."""
    s2: NDArray[np.float64]
    """(N, S // 2 + 1)"""
    lineal_path: NDArray[np.float64]
    """(N, S // 2)"""
    chords: NDArray[np.int64]
    """(N, S + 1) number of chords of each length."""
    intercepts: NDArray[np.float64]
    """(N, 2) length and number of intercepts."""
    boundary_density: NDArray[np.float64]
    """(N,)"""
    islands: dict[str, NDArray[np.float64]]
    """One value per island, with the index of its `image`."""

    def __len__(self) -> int:
        return len(self.fraction)


@dataclass(frozen=True)
class Resampled:
    """A structure with weights (B, N): how often each image occurs in each of B resamples."""

    structure: Structure
    weights: NDArray[np.float64]

    def mean(self, values: NDArray) -> NDArray[np.float64]:
        """(N, ...) values of images → (B, ...) means of resamples."""
        return self.weights @ values / len(self.structure)

    @cached_property
    def island_weights(self) -> NDArray[np.float64]:
        """(B, islands)"""
        return self.weights[:, self.structure.islands["image"].astype(np.intp)]


def measure_structure(phase: Phase) -> Structure:
    """Computes all descriptors of one class in (N, S, S) masks."""
    reach = phase.shape[1] // 2
    return Structure(
        phase.mean(axis=(1, 2)),
        compute_s2(phase, reach),
        compute_lineal_path(phase, reach),
        count_runs(phase, complete=True),
        compute_intercepts(phase),
        compute_boundary_density(phase),
        compute_islands(phase),
    )


def compute_structure_distances(
    generated: Resampled, real: Resampled, pixel_size_um: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """Distances between two structures: (B,) values by name with unit; undefined ones are NaN."""
    first, second = generated.structure, real.structure
    chords = [_share(part.weights @ part.structure.chords) for part in (generated, real)]
    distances = {
        "phase fraction (points)": 100 * np.abs(generated.mean(first.fraction) - real.mean(second.fraction)),
        "S2 (relative L1)": _relative_l1(generated.mean(first.s2), real.mean(second.s2)),
        "lineal path (relative L1)": _relative_l1(generated.mean(first.lineal_path), real.mean(second.lineal_path)),
        "chord length W1 (px)": np.abs(np.cumsum(chords[0] - chords[1], axis=1)).sum(axis=1),
    }
    if pixel_size_um is not None:
        distances["chord length W1 (µm)"] = distances["chord length W1 (px)"] * pixel_size_um
    # All images have one size, so islands per image stand for islands per area.
    for name, compute in (
        ("mean intercept", lambda part: _divide(*part.mean(part.structure.intercepts).T)),
        ("boundary density", lambda part: part.mean(part.structure.boundary_density)),
        ("islands per area", lambda part: part.island_weights.sum(axis=1) / len(part.structure)),
    ):
        reference = compute(real)
        distances[f"{name} (relative)"] = _divide(np.abs(compute(generated) - reference), reference)
    for name in ISLAND_PROPERTIES:
        title = f"island {name.replace('_', ' ')} W1 ({_UNITS[name]})"
        compare = compute_axial_wasserstein if name == "orientation" else compute_wasserstein
        distances[title] = compare(
            first.islands[name], generated.island_weights, second.islands[name], real.island_weights
        )
    return distances


_UNITS = {"area": "px²", "diameter": "px", "aspect_ratio": "1", "circularity": "1", "orientation": "°"}


def compute_wasserstein(
    first: NDArray, first_weights: NDArray, second: NDArray, second_weights: NDArray
) -> NDArray[np.float64]:
    """Wasserstein-1 distance of two weighted samples, (K,) and (L,), for each of B sets of weights, (B, K) and (B, L).

    Returns:
        (B,); NaN if a sample is empty or has no weight.
    """
    if not len(first) or not len(second):
        return np.full(len(first_weights), np.nan)
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order])
    distances = []
    step = max(1, _MAX_VALUES // len(values))
    for start in range(0, len(first_weights), step):
        part = slice(start, start + step)
        shares = np.concatenate([_share(first_weights[part]), -_share(second_weights[part])], axis=1)
        distances.append(np.abs(np.cumsum(shares[:, order], axis=1)[:, :-1]) @ gaps)
    return np.concatenate(distances)


def compute_axial_wasserstein(
    first: NDArray, first_weights: NDArray, second: NDArray, second_weights: NDArray
) -> NDArray[np.float64]:
    """Wasserstein-1 distance of two weighted samples of orientations around the circle (degrees, period 180).

    Integral of the cumulative difference minus its median (Rabin et al. 2011, J. Math. Imaging Vis. 41, eq. 6), in bins
    of 1°. Arguments: see `compute_wasserstein`.

    Returns:
        (B,) degrees, at most 90; NaN if a sample is empty or has no weight.
    """
    if not len(first) or not len(second):
        return np.full(len(first_weights), np.nan)
    bins = np.eye(180)
    shares = [
        _share(weights @ bins[values.astype(np.intp) % 180])
        for values, weights in ((first, first_weights), (second, second_weights))
    ]
    difference = np.cumsum(shares[0] - shares[1], axis=1)
    return np.abs(difference - np.median(difference, axis=1, keepdims=True)).sum(axis=1)


def _relative_l1(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """(B, K) curves → (B,) area between them relative to the area below the second."""
    return _divide(np.abs(first - second).sum(axis=1), second.sum(axis=1))


def _share(counts: NDArray) -> NDArray[np.float64]:
    """Rows of (B, K) divided by their sums; NaN for a sum of 0."""
    return _divide(counts, counts.sum(axis=1, keepdims=True))


def _divide(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, math.nan)

"""Microstructure distances against scipy and by hand, and their intervals against new samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.structure import (
    Resampled,
    compute_axial_wasserstein,
    compute_structure_distances,
    compute_wasserstein,
    measure_structure,
)


def draw_squares(count: int, seed: int, edge: int = 6) -> np.ndarray:
    """Squares of one size at random locations of (count, 48, 48) images, with overlap."""
    rng = np.random.default_rng(seed)
    phase = np.zeros((count, 48, 48), bool)
    for image in phase:
        for top, left in rng.integers(0, 48 - edge, (rng.poisson(6), 2)):
            image[top : top + edge, left : left + edge] = True
    return phase


def compare(first: np.ndarray, second: np.ndarray, seed: int | None = None, pixel_size: float | None = None) -> dict:
    """Distances of the sets, and of resamples if there is a seed."""
    num_resamples = 0 if seed is None else 200
    parts = [
        Resampled(measure_structure(phase), resample_weights(len(phase), seed or 0, stream, num_resamples))
        for stream, phase in enumerate((first, second))
    ]
    return compute_structure_distances(*parts, pixel_size)


def test_weighted_wasserstein_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=30), rng.normal(1, 2, size=40)
    weights, others = rng.integers(0, 4, (3, 30)), rng.integers(0, 4, (3, 40))
    expected = [scipy.stats.wasserstein_distance(first, second, u, v) for u, v in zip(weights, others, strict=True)]
    np.testing.assert_allclose(compute_wasserstein(first, weights, second, others), expected, rtol=1e-9)
    assert np.isnan(compute_wasserstein(np.empty(0), np.ones((2, 0)), second, others[:2])).all()


def test_orientations_are_compared_around_the_circle() -> None:
    def distance(first: list[float], second: list[float]) -> float:
        values = [np.array(part) for part in (first, second)]
        ones = [np.ones((1, len(part))) for part in values]
        return compute_axial_wasserstein(values[0], ones[0], values[1], ones[1])[0]

    assert distance([179.0], [1.0]) == pytest.approx(2)
    assert distance([10.0], [100.0]) == pytest.approx(90)
    assert np.isnan(distance([], [1.0]))


def test_distances_of_known_shapes() -> None:
    small, large = np.zeros((1, 48, 48), bool), np.zeros((1, 48, 48), bool)
    small[0, 10:16, 10:16] = True
    large[0, 10:22, 10:22] = True
    distances = compare(small, large, pixel_size=0.5)
    assert distances["phase fraction (points)"] == pytest.approx(100 * (144 - 36) / 48**2)
    assert distances["chord length W1 (px)"] == pytest.approx(6)
    assert distances["chord length W1 (µm)"] == pytest.approx(3)
    assert distances["mean intercept (relative)"] == pytest.approx(0.5)
    assert distances["boundary density (relative)"] == pytest.approx(0.5)
    assert distances["islands per area (relative)"] == 0
    assert distances["island area W1 (px²)"] == pytest.approx(108)
    assert distances["island aspect ratio W1 (1)"] == pytest.approx(0)
    nothing = compare(np.zeros_like(small), large)
    assert nothing["phase fraction (points)"] == pytest.approx(100 * 144 / 48**2)
    assert np.isnan(nothing["chord length W1 (px)"])
    assert np.isnan(nothing["island area W1 (px²)"])


def test_resampling_equals_measuring_the_resampled_images() -> None:
    first, second = draw_squares(12, 0), draw_squares(10, 1, edge=8)
    drawn = compare(first, second, seed=3)
    for draw in (1, 17):
        indices = [
            np.repeat(np.arange(len(part)), resample_weights(len(part), 3, stream, 200)[draw].astype(int))
            for stream, part in enumerate((first, second))
        ]
        again = compare(first[indices[0]], second[indices[1]])
        for metric, values in drawn.items():
            assert values[draw] == pytest.approx(again[metric][0], rel=1e-5, nan_ok=True), metric


def test_intervals_have_their_nominal_coverage() -> None:
    reference = draw_squares(150, 99, edge=8)
    metrics = ("phase fraction (points)", "chord length W1 (px)", "island area W1 (px²)")
    true = compare(draw_squares(300, 98), reference)
    held = np.zeros(len(metrics))
    for seed in range(20):
        drawn = compare(draw_squares(30, seed), reference, seed)
        for index, metric in enumerate(metrics):
            low, high = center_interval(drawn[metric], lowest=0.0)
            held[index] += low <= true[metric][0] <= high
    assert (held >= 16).all(), held

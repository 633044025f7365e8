"""Intervals against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from steelgen.evaluation.intervals import (
    bootstrap_interval,
    center_interval,
    normal_interval,
    resample_weights,
    wilson_interval,
)


@pytest.mark.parametrize(("share", "count"), [(0.0, 64), (0.25, 20), (0.5, 1000), (1.0, 7)])
def test_wilson_is_scipys(share: float, count: int) -> None:
    expected = scipy.stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    assert wilson_interval(share, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).gamma(2, size=60)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((expected.low, expected.high), rel=0.02)
    assert bootstrap_interval(np.append(values, np.nan)) == bootstrap_interval(values)
    assert np.isnan(bootstrap_interval(np.array([np.nan]))).all()


def test_weights_sum_to_the_count_and_differ_between_streams() -> None:
    weights = resample_weights(9, seed=4, num_resamples=50)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 9).all()
    np.testing.assert_array_equal(weights, resample_weights(9, seed=4, num_resamples=50))
    assert (weights != resample_weights(9, seed=4, stream=1, num_resamples=50)).any()


def test_an_interval_contains_its_figure_and_stays_within_limits() -> None:
    draws = np.random.default_rng(1).normal(5, 1, 2000)
    low, high = center_interval(np.append(2.0, draws))
    assert (low, high) == pytest.approx((2 - 1.96, 2 + 1.96), abs=0.15)
    assert center_interval(np.append(2.0, draws), lowest=1.5)[0] == 1.5
    assert np.isnan(center_interval(np.append(math.nan, draws))).all()
    # A figure that is undefined in every third resample depends on a single image.
    assert np.isnan(center_interval(np.array([4.0, 4.0, math.nan, 4.0]))).all()
    assert normal_interval(1.0, 1.0, lowest=0.0) == pytest.approx((0.0, 2.96), abs=0.001)

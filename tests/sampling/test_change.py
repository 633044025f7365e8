"""Masks of what a translation has changed, on images in which the change is known."""

import numpy as np
import pytest

from steelgen.sampling.change import compute_change, compute_levels


def make_pair(gain, offset, grain, planted):
    """A textured image, and the same with other gray levels, new grain, and a brighter disc."""
    rng = np.random.default_rng(0)
    before = 110 + 25 * np.sin(np.arange(96) / 7)[:, None] + rng.normal(0, 6, (96, 96))
    rows, columns = np.mgrid[:96, :96]
    disc = (rows - 40) ** 2 + (columns - 55) ** 2 <= 10**2
    after = gain * before + offset + rng.normal(0, grain, before.shape) + planted * disc
    return *(image.clip(0, 255).astype(np.uint8) for image in (before, after)), disc


@pytest.mark.parametrize(("gain", "offset", "planted"), [(1, 0, 50), (0.5, 60, 50), (1.3, -30, 50), (-0.6, 160, -60)])
def test_a_planted_change_is_found_whatever_became_of_the_gray_levels(gain, offset, planted):
    before, after, disc = make_pair(gain, offset, 8, planted)
    change = compute_change(before, after)
    found = change >= compute_levels(change, 4)
    assert (found & disc).sum() / (found | disc).sum() > 0.9


def test_grain_alone_is_no_change():
    before, after, _ = make_pair(0.7, 20, 12, 0)
    change = compute_change(before, after, smoothing=0)
    # A normal deviate is beyond 4 standard deviations in 0.006 % of the cases, beyond 2 in 4.6 %.
    assert (change >= 4).mean() < 0.001
    assert (change >= 2).mean() == pytest.approx(0.046, abs=0.015)
    assert compute_change(before, before).max() == 0
    flat = np.full((8, 8), 90, np.uint8)
    assert compute_change(flat, np.full((8, 8), 30, np.uint8)).max() == 0


def test_colors_count_by_their_mean():
    before, after, _ = make_pair(0.8, 10, 5, 40)
    colored = [np.repeat(image[..., None], 3, axis=2) for image in (before, after)]
    assert compute_change(*colored) == pytest.approx(compute_change(before, after))

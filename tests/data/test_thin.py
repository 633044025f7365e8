"""Shrinking of masks with thin classes."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.draw import line
from skimage.measure import label

from steelgen.data.placement import resize_mask
from steelgen.data.thin import compute_mean_width, find_lines, shrink_mask

ENDS = [
    (0, 20, 63, 20),
    (37, 0, 37, 63),
    (0, 0, 63, 63),
    (1, 0, 63, 62),
    (2, 0, 63, 61),
    (5, 2, 60, 25),
    (60, 3, 8, 59),
]


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("ends", ENDS)
def test_lines_of_one_pixel_stay_connected_from_end_to_end(ends, factor):
    mask = np.zeros((64, 64), np.uint8)
    mask[line(*ends)] = 2
    shrunken = shrink_mask(mask, factor)
    assert shrunken.shape == (64 // factor, 64 // factor)
    islands = label(shrunken == 2, connectivity=2)
    assert islands.max() == 1
    top, left, bottom, right = (end // factor for end in ends)
    found = np.argwhere(islands)
    for end in ((top, left), (bottom, right)):
        assert np.abs(found - end).max(axis=1).min() <= 1
    # Nothing grows where there was no line.
    assert not (shrunken == 2)[~resize_mask_any(mask == 2, factor)].any()


def resize_mask_any(phase, factor):
    """Which shrunken pixels contain any of a phase."""
    height, width = phase.shape
    return phase.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))


def test_the_thinnest_class_wins_where_two_lines_cross():
    mask = np.zeros((32, 32), np.uint8)
    mask[10:13] = 1
    mask[:, 20] = 2
    shrunken = shrink_mask(mask, 4)
    assert (shrunken[:, 5] == 2).all()
    assert (shrunken[2:4, :5] == 1).any(axis=0).all()


def test_wide_classes_are_shrunk_by_majority():
    mask = np.zeros((96, 96), np.uint8)
    for top, left in ((7, 9), (9, 55), (49, 14), (57, 57)):
        mask[top : top + 31, left : left + 31] = 1
    expected = resize_mask(mask, 24, 24)
    shrunken = shrink_mask(mask, 4)
    tied = mask.reshape(24, 4, 24, 4).sum(axis=(1, 3)) == 8
    assert (shrunken == expected)[~tied].all()


@pytest.mark.parametrize("factor", [2, 4])
def test_small_islands_do_not_grow_into_each_other(factor):
    """Disks too small for the shrunken pixels are counted by majority, as training does, not kept at all costs."""
    rng = np.random.default_rng(0)
    mask = np.zeros((128, 128), np.uint8)
    rows, columns = np.mgrid[:128, :128]
    for row, column, radius in zip(*rng.uniform(4, 124, (2, 150)), rng.uniform(0.5, 5, 150), strict=True):
        mask[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
    share, shrunken = (mask == 1).mean(), (shrink_mask(mask, factor) == 1).mean()
    assert 0.75 < shrunken / share < 1.1


def test_lines_are_told_from_islands_and_dots():
    mask = np.zeros((32, 32), bool)
    mask[4:14, 4:14] = True
    mask[9, 14:26] = True
    mask[20:22, 4:6] = True
    expected = np.zeros_like(mask)
    expected[9, 14:26] = True
    assert np.array_equal(find_lines(mask, 2), expected)


def test_ignored_pixels_do_not_win_as_a_thin_class():
    mask = np.zeros((16, 16), np.uint8)
    mask[5] = 255
    assert (shrink_mask(mask, 4) == 0).all()


def test_sizes_that_are_no_multiple_of_the_factor_are_rounded_up():
    mask = np.zeros((33, 18), np.uint8)
    mask[32] = 1
    shrunken = shrink_mask(mask, 4)
    assert shrunken.shape == (9, 5)
    assert (shrunken[-1] == 1).all()


def test_mean_width_of_a_band_is_its_width():
    band = np.zeros((40, 50), bool)
    band[12:17] = True
    assert compute_mean_width(band) == 5
    assert compute_mean_width(np.ones((4, 4), bool)) == float("inf")

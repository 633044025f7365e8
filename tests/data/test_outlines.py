"""Regions of masks, as run lengths and as outlines."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from steelgen.data.outlines import iterate_regions, join_rings, trace_rings
from steelgen.data.rasterise import rasterise_polygons
from steelgen.data.runlength import encode_counts
from tests.data.samples import decode_counts, random_mask


@pytest.mark.parametrize("smooth", [0.0, 0.7, 2.0, 5.0])
def test_islands_as_run_lengths_and_outlines_are_the_mask(smooth: float) -> None:
    for seed in range(3):
        mask = random_mask(seed, smooth=smooth)
        drawn = np.zeros_like(mask)
        for region in iterate_regions(mask, (1, 2)):
            island = decode_counts(region.encode(), *region.size)
            assert np.array_equal(rasterise_polygons(region.trace(), *mask.shape), island)
            height, width = region.pixels.shape
            window = island[region.top : region.top + height, region.left : region.left + width]
            assert window.sum() == island.sum() == region.area
            assert scipy.ndimage.label(island)[1] == 1
            assert (drawn[island] == 0).all()
            drawn[island] = region.class_index
        assert np.array_equal(drawn, mask)


def test_instances_may_touch_and_be_of_several_parts() -> None:
    mask = np.ones((4, 6), np.uint8)
    mask[3] = 2
    instances = np.array([[7, 7, 7, 9, 9, 0], [7, 7, 7, 9, 9, 0], [9, 9, 7, 0, 0, 0], [0] * 6], np.uint16)
    regions = list(iterate_regions(mask, (1, 2), instances))
    assert [(region.class_index, region.area) for region in regions] == [(1, 7), (1, 6), (1, 5), (2, 6)]
    assert [len(region.trace()) for region in regions] == [1, 2, 1, 1]
    for region, chosen in zip(regions, (instances == 7, instances == 9), strict=False):
        assert np.array_equal(rasterise_polygons(region.trace(), *mask.shape), chosen)


def test_instances_everywhere() -> None:
    regions = list(iterate_regions(np.ones((2, 2), np.uint8), (1,), np.array([[5, 5], [6, 6]], np.uint16)))
    assert [region.area for region in regions] == [2, 2]


def test_outline_of_a_ring_has_the_area_of_the_ring() -> None:
    ring = np.ones((5, 6), bool)
    ring[1:4, 2:4] = False
    outline, *holes = trace_rings(ring)
    for given in (holes, [hole[::-1] for hole in holes]):
        x, y = join_rings(outline, given).T
        assert abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 == ring.sum()
    (square,) = trace_rings(np.ones((2, 3), bool))
    assert sorted(map(tuple, square.tolist())) == [(0, 0), (0, 2), (3, 0), (3, 2)]


def test_counts_start_with_background_and_fill_the_image() -> None:
    assert encode_counts(np.zeros((2, 2), bool)) == [4]
    assert encode_counts(np.ones((2, 2), bool)) == [0, 4]
    assert encode_counts(np.array([[False, True], [True, False]])) == [1, 2, 1]

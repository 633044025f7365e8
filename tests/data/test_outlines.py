"""Regions of masks, as run lengths and as outlines."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from steelgen.data.outlines import iterate_regions, join_even_odd, join_rings, trace_outlines
from tests.data.samples import BUNDLED, decode_counts, encode_counts, random_mask, rasterize_polygons


@pytest.mark.parametrize("smooth", [0.0, 0.7, 2.0, 5.0])
def test_islands_as_run_lengths_and_outlines_are_the_mask(smooth: float) -> None:
    for seed in range(3):
        mask = random_mask(seed, smooth=smooth)
        rasterized = np.zeros_like(mask)
        for region in iterate_regions(mask, (1, 2)):
            island = decode_counts(region.encode(), *region.size)
            assert np.array_equal(rasterize_polygons(region.trace(), *mask.shape), island)
            height, width = region.pixels.shape
            window = island[region.top : region.top + height, region.left : region.left + width]
            assert window.sum() == island.sum() == region.area
            assert scipy.ndimage.label(island)[1] == 1
            assert (rasterized[island] == 0).all()
            rasterized[island] = region.class_index
        assert np.array_equal(rasterized, mask)


def test_instances_may_touch_and_have_several_parts() -> None:
    mask = np.ones((4, 6), np.uint8)
    mask[3] = 2
    instances = np.array([[7, 7, 7, 9, 9, 0], [7, 7, 7, 9, 9, 0], [9, 9, 7, 0, 0, 0], [0] * 6], np.uint16)
    regions = list(iterate_regions(mask, (1, 2), instances))
    assert [(region.class_index, region.area) for region in regions] == [(1, 7), (1, 6), (1, 5), (2, 6)]
    assert [len(region.trace()) for region in regions] == [1, 2, 1, 1]
    for region, chosen in zip(regions, (instances == 7, instances == 9), strict=False):
        assert np.array_equal(rasterize_polygons(region.trace(), *mask.shape), chosen)


def test_instances_everywhere() -> None:
    regions = list(iterate_regions(np.ones((2, 2), np.uint8), (1,), np.array([[5, 5], [6, 6]], np.uint16)))
    assert [region.area for region in regions] == [2, 2]


def test_outline_of_a_ring_has_the_area_of_the_ring() -> None:
    ring = np.ones((5, 6), bool)
    ring[1:4, 2:4] = False
    (traced,) = trace_outlines(ring)
    outline, hole = (np.array(corners, float) for corners in (_box(0, 0, 6, 5), _box(2, 1, 4, 4)))
    for joined in (traced, join_rings(outline, [hole]), join_rings(outline, [hole[::-1]])):
        x, y = joined.T
        assert abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 == ring.sum()
    (square,) = trace_outlines(np.ones((2, 3), bool))
    assert sorted(map(tuple, square.tolist())) == [(0, 0), (0, 2), (3, 0), (3, 2)]


def test_bridges_stay_within_their_part() -> None:
    """So tools that also fill the pixels under an outline do not fill pixels of holes along bridges."""
    for seed in range(3):
        pixels = random_mask(seed, (60, 70), smooth=1.0) > 0
        for ring in trace_outlines(pixels):
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                assert (x0 == x1) != (y0 == y1)
                if y0 == y1:
                    # Horizontal steps have the part above or below them.
                    columns = slice(min(x0, x1), max(x0, x1))
                    below = pixels[y0, columns] if y0 < 60 else np.zeros(columns.stop - columns.start, bool)
                    assert (below | (pixels[y0 - 1, columns] if y0 else False)).all()


def test_even_odd_rings_in_any_direction() -> None:
    rings = [np.array(_box(low, low, high, high), float) for low, high in ((0, 20), (2, 16), (4, 12), (6, 9), (17, 19))]
    for turned in (rings, [ring[::-1] for ring in rings], [rings[0][::-1], *rings[1:]]):
        mask = rasterize_polygons([join_even_odd(turned)], 20, 20)
        assert mask.sum() == 20**2 - 14**2 + 8**2 - 3**2 - 2**2
        assert mask[4, 4]
        assert not mask[7, 7]
    assert len(join_even_odd([])) == 0


def test_a_real_micrograph_is_traced_in_seconds() -> None:
    """The mask has a network with thousands of holes, which becomes one ring."""
    mask = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "masks" / "uhcs0007.png"))
    rasterized = np.zeros_like(mask)
    for region in iterate_regions(mask, (1, 2, 3)):
        rasterized[rasterize_polygons(region.trace(), *mask.shape)] = region.class_index
    np.testing.assert_array_equal(rasterized, np.where(mask == 255, 0, mask))


def _box(left: int, top: int, right: int, bottom: int) -> list[tuple[int, int]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_counts_start_with_background_and_fill_the_image() -> None:
    assert encode_counts(np.zeros((2, 2), bool)) == [4]
    assert encode_counts(np.ones((2, 2), bool)) == [0, 4]
    assert encode_counts(np.array([[False, True], [True, False]])) == [1, 2, 1]

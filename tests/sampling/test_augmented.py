"""Rearranged masks: geometry, areas kept, no overlap, area shares met, determinism."""

import numpy as np
import pytest
import scipy.ndimage

from steelgen.config.mask_sources import AugmentedMasks
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_mask
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.sampling.augmented import cut_warped, move_islands
from steelgen.sampling.footprints import adjust_area, place_island, rotate_footprint
from steelgen.sampling.mask_sources import build_mask_source
from steelgen.sampling.procedural import sample_footprint
from tests.sampling.layouts import write_island_dataset

GEOMETRY = CropGeometry(64, 96)


@pytest.fixture(scope="module")
def islands(tmp_path_factory):
    return write_island_dataset(tmp_path_factory.mktemp("islands") / "islands")


def build(dataset, seed=0, **options):
    return build_mask_source(AugmentedMasks(dataset=dataset, **options), load_dataset_info(dataset), GEOMETRY, seed)


def count_islands(mask, label):
    return scipy.ndimage.label(mask == label)[1]


def test_a_mask_depends_on_seed_and_number_alone(islands):
    first, again, other = build(islands), build(islands), build(islands, seed=1)
    masks = [first.draw(index) for index in (0, 1, 2)]
    assert np.array_equal(masks[2].mask, again.draw(2).mask)
    assert not np.array_equal(masks[2].mask, other.draw(2).mask)
    assert not np.array_equal(masks[0].mask, masks[1].mask)
    assert all(drawn.mask.shape == (64, 64) and drawn.mask.dtype == np.uint8 for drawn in masks)
    assert all(drawn.image is None and drawn.source.startswith("train/masks/m") for drawn in masks)


def test_without_any_change_a_cut_is_a_window_of_the_mask(islands):
    mask = load_mask(islands / "train/masks/m0.png", load_dataset_info(islands))
    for seed in range(5):
        plain = cut_warped(mask, 32, 0, False, 0, 1, np.random.default_rng(seed))
        windows = np.lib.stride_tricks.sliding_window_view(mask, (32, 32))
        assert (windows == plain).all(axis=(2, 3)).any()
        turned = cut_warped(mask, 32, 90, False, 0, 1, np.random.default_rng(seed))
        windows = np.lib.stride_tricks.sliding_window_view(np.rot90(mask), (32, 32))
        flipped = [turned, np.rot90(turned, 2)]
        assert any((windows == candidate).all(axis=(2, 3)).any() for candidate in flipped)


def test_a_warp_moves_borders_by_about_its_deviation():
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 100:] = 1
    shift = []
    for seed in range(8):
        warped = cut_warped(mask, 128, 0, False, 3.0, 24.0, np.random.default_rng(seed))
        edges = 128 - warped.sum(axis=1, dtype=float)
        shift.append((edges - edges.mean()).std())
    assert np.mean(shift) == pytest.approx(3.0, rel=0.35)


def test_moved_islands_keep_their_area_and_touch_none(islands):
    info = load_dataset_info(islands)
    for seed in range(4):
        before = load_mask(islands / "train/masks/m0.png", info)
        mask = before.copy()
        move_islands(mask, 0, info, 1.0, (1.0, 1.0), np.random.default_rng(seed))
        for label in (1, 2):
            assert (mask == label).sum() == (before == label).sum()
            assert count_islands(mask, label) == count_islands(before, label)
        moved = (mask != before).mean()
        assert moved > 0.1
        joined = scipy.ndimage.label(mask > 0)[1]
        assert joined == count_islands(mask, 1) + count_islands(mask, 2)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.25])
def test_area_shares_are_met_to_the_pixel(islands, share):
    source = build(islands, phase_fraction={"block": share, "lath": 0.05})
    for index in range(6):
        mask = source.draw(index).mask
        assert (mask == 1).sum() == round(share * mask.size)
        assert (mask == 2).sum() == round(0.05 * mask.size)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"blok": 0.1}, "'blok' is not among the classes matrix, block, lath"),
        ({"matrix": 0.1}, "'matrix' is the matrix"),
        ({"block": 0.5, "lath": 0.5}, "fractions add up to 1, more than 0.9"),
    ],
)
def test_impossible_shares_are_named(islands, shares, message):
    with pytest.raises(InputError, match=message):
        build(islands, phase_fraction=shares)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_turning_keeps_area_and_shape(scale):
    rng = np.random.default_rng(0)
    for angle in (0, 30, 77, 90, 200):
        island = sample_footprint(120, 3.0, 1.0, 0.2, rng)
        turned = rotate_footprint(island, angle, scale)
        assert turned.sum() == round(120 * scale**2)
        assert scipy.ndimage.label(turned)[1] == 1
    assert np.array_equal(rotate_footprint(island, 0, 1.0), island)


def test_an_island_is_refused_where_it_would_touch():
    mask = np.zeros((10, 10), np.uint8)
    mask[4:6, 4:6] = 2
    before = mask.copy()
    square = np.ones((2, 2), bool)
    assert not place_island(mask, square, 1, 0, 4, 6)
    assert not place_island(mask, square, 1, 0, 5, 5)
    assert not place_island(mask, square, 1, 0, 20, 20)
    assert np.array_equal(mask, before)
    assert place_island(mask, square, 1, 0, 4, 7)
    assert place_island(mask, square, 1, 0, -1, -1)
    assert (mask == 1).sum() == 5


def test_meeting_an_area_gives_and_takes_exactly():
    rng = np.random.default_rng(0)
    info = DatasetInfo(name="x", class_names=["matrix", "island"])
    for wanted in (0, 1, 37, 300):
        mask = np.zeros((40, 40), np.uint8)
        mask[3:10, 3:10] = mask[20:28, 20:31] = 1
        adjust_area(mask, 1, 0, wanted, rng)
        assert (mask == 1).sum() == wanted
        assert mask.max() < info.num_classes
    assert list(find_islands(np.zeros((4, 4), np.uint8), 1)) == []

"""Layouts: the statistics of the masks they were measured on come back, shares are met, nothing overlaps."""

import numpy as np
import pytest
import scipy.ndimage
from skimage.measure import label, regionprops

from steelgen.config.mask_sources import ProceduralMasks
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_mask, save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.sampling.island_statistics import measure_masks, pool_tables, tabulate_islands
from steelgen.sampling.mask_sources import build_mask_source
from steelgen.sampling.procedural import sample_footprint, sample_layout
from tests.sampling.layouts import write_island_dataset

GEOMETRY = CropGeometry(96, 96)


@pytest.fixture(scope="module")
def islands(tmp_path_factory):
    return write_island_dataset(tmp_path_factory.mktemp("islands") / "islands")


def build(dataset, seed=0, **options):
    return build_mask_source(ProceduralMasks(dataset=dataset, **options), load_dataset_info(dataset), GEOMETRY, seed)


def measure(masks, index):
    return pool_tables([tabulate_islands(mask == index, np.zeros(mask.shape, bool)) for mask in masks])


def test_a_layout_depends_on_seed_and_number_alone(islands):
    first, again, other = build(islands), build(islands), build(islands, seed=1)
    assert np.array_equal(first.draw(3).mask, again.draw(3).mask)
    assert not np.array_equal(first.draw(3).mask, other.draw(3).mask)
    assert not np.array_equal(first.draw(3).mask, first.draw(4).mask)
    assert first.draw(3).source.startswith("layout after train/masks/m")


def test_island_statistics_of_the_real_masks_come_back(islands):
    """Median area and aspect ratio to 15 %, mean area share to 15 %, median spacing to 25 %."""
    info = load_dataset_info(islands)
    real = [load_mask(islands / f"train/masks/m{index}.png", info) for index in range(3)]
    source = build(islands)
    drawn = [source.draw(index).mask for index in range(40)]
    for index in (1, 2):
        wanted, found = measure(real, index), measure(drawn, index)
        assert np.median(found.area) == pytest.approx(np.median(wanted.area), rel=0.15)
        assert np.median(found.aspect_ratio) == pytest.approx(np.median(wanted.aspect_ratio), rel=0.15)
        share = np.mean([(mask == index).mean() for mask in drawn])
        assert share == pytest.approx(np.mean([(mask == index).mean() for mask in real]), rel=0.15)
        spacing = [np.median(table.spacing[np.isfinite(table.spacing)]) for table in (wanted, found)]
        assert spacing[1] == pytest.approx(spacing[0], rel=0.25)


def test_islands_that_lie_one_way_do_so_in_a_layout(islands):
    source = build(islands)
    for number in range(4):
        angles = measure([source.draw(number).mask], 2).angle
        assert abs(np.exp(2j * angles).mean()) > 0.8  # 1: all parallel, 0: no preferred direction


def test_islands_neither_overlap_nor_touch(islands):
    source = build(islands)
    for number in range(6):
        mask = source.draw(number).mask
        apart = sum(scipy.ndimage.label(mask == index)[1] for index in (1, 2))
        assert scipy.ndimage.label(mask > 0)[1] >= apart - 2  # two at most, grown to meet the share


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2])
def test_area_shares_are_met_to_the_pixel(islands, share):
    source = build(islands, phase_fraction={"block": share})
    for number in range(4):
        mask = source.draw(number).mask
        assert (mask == 1).sum() == round(share * mask.size)


def test_a_class_that_is_not_there_cannot_be_measured(tmp_path):
    info = DatasetInfo(name="x", class_names=["matrix", "island", "film"])
    mask = np.zeros((100, 100), np.uint8)
    mask[20:30, 20:30] = 1
    for folder in ("images", "masks"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        save_mask(tmp_path / "train" / folder / "a.png", mask, info.palette)
    save_dataset_info(tmp_path, info)
    with pytest.raises(InputError, match="'film' cannot be measured, it does not occur in the train split"):
        build(tmp_path, phase_fraction={"film": 0.1})


def test_a_film_is_drawn_as_one():
    mask = np.zeros((200, 200), np.uint8)
    mask[95:103] = 1
    mask[:, 60:68] = 1
    statistics = measure_masks([mask], 2, 0)
    assert statistics.networks[0][1].thickness == pytest.approx(8, rel=0.15)
    share = float((mask == 1).mean())
    for seed in range(3):
        drawn = sample_layout(statistics, 0, {1: share}, 128, np.random.default_rng(seed))
        assert (drawn == 1).sum() == round(share * 128 * 128)
        depth = scipy.ndimage.distance_transform_edt(np.pad(drawn == 1, 1, mode="edge"))[1:-1, 1:-1]
        assert 4 * depth[drawn == 1].mean() - 2 == pytest.approx(8, rel=0.6)
        assert scipy.ndimage.label(drawn)[1] <= 6


@pytest.mark.parametrize("area", [30, 200])
@pytest.mark.parametrize("aspect", [1.5, 4.0])
def test_a_footprint_has_the_area_and_aspect_asked_for(area, aspect):
    rng = np.random.default_rng(0)
    found = [sample_footprint(area, aspect, 1.0, rng.uniform(0, 3), rng) for _ in range(20)]
    assert all(footprint.sum() == area for footprint in found)
    ratios = [tabulate_islands(np.pad(footprint, 1), np.zeros((1, 1), bool)).aspect_ratio[0] for footprint in found]
    assert np.median(ratios) == pytest.approx(aspect, rel=0.1)


def test_measures_agree_with_skimage():
    rng = np.random.default_rng(0)
    phase = scipy.ndimage.gaussian_filter(rng.normal(size=(90, 110)), 3) > 0.05
    table = tabulate_islands(phase, np.zeros(phase.shape, bool))
    regions = [
        region
        for region in regionprops(label(phase, connectivity=2))
        if region.bbox[0] > 0 and region.bbox[1] > 0 and region.bbox[2] < 90 and region.bbox[3] < 110
    ]
    assert sorted(table.area) == sorted(region.area for region in regions)
    large = [region for region in regions if region.area >= 30]
    ours = table.area >= 30
    wanted = sorted(region.axis_major_length / region.axis_minor_length for region in large)
    assert np.allclose(sorted(table.aspect_ratio[ours]), wanted, rtol=0.03)  # there pixels are points, here squares
    assert np.allclose(sorted(table.solidity[ours]), sorted(region.solidity for region in large), rtol=1e-6)

"""Patches: every island once a pass, whole, in the middle, with mirror images beyond the edge."""

from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label, regionprops

from steelgen.data.cache import Micrographs
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.patches import PatchCenters, select_island
from steelgen.data.placement import CropGeometry, Placement, Variation
from steelgen.errors import InputError

UHCS = Path(__file__).parents[2] / "data" / "uhcs"
ISLANDS = PatchCenters("islands", None, 30, 8)


def build(*masks, instances=None, names=("matrix", "island", "film")):
    info = DatasetInfo(name="set", class_names=list(names))
    arrays = [np.asarray(mask, np.uint8) for mask in masks]
    images = [np.arange(mask.size, dtype=np.uint8).reshape(mask.shape) for mask in arrays]
    return Micrographs(info, [f"m{index}" for index in range(len(arrays))], images, arrays, instances)


def draw_discs(places, size=60, radius=4, value=1):
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for row, column in places:
        mask[np.hypot(y - row, x - column) <= radius] = value
    return mask


def test_islands_are_those_of_skimage():
    micrographs = load_micrographs(UHCS, "val")
    found = ISLANDS.find(micrographs)
    mask = micrographs.masks[0]
    expected = [
        (round(region.centroid[0]), round(region.centroid[1]), region.area, number)
        for number in (1, 2, 3)
        for region in regionprops(label(mask == number, connectivity=2))
        if region.area >= 30
        and min(region.bbox[:2]) > 0
        and region.bbox[2] < mask.shape[0]
        and region.bbox[3] < mask.shape[1]
    ]
    ours = [(*patch.center, patch.area, patch.label) for patch in found if patch.micrograph == 0]
    assert len(ours) > 100
    assert sorted(ours) == sorted(expected)


def test_each_pass_visits_each_island_once_in_its_own_order():
    micrographs = build(draw_discs([(15, 15), (15, 40), (40, 25)]), draw_discs([(30, 30), (48, 48)]))
    crops = CropDataset(micrographs, CropGeometry(16, 16), 3, False, centers=ISLANDS)
    assert len(crops) == 5

    def visit(start, dataset=crops):
        return [
            (dataset.micrograph_index(n), dataset.place(n).top, dataset.place(n).left) for n in range(start, start + 5)
        ]

    passes = [visit(start) for start in range(0, 25, 5)]
    assert all(sorted(each) == sorted(passes[0]) for each in passes)
    assert len(set(passes[0])) == 5
    assert len({tuple(each) for each in passes}) > 1
    again = CropDataset(micrographs, CropGeometry(16, 16), 3, False, centers=ISLANDS)
    assert visit(10, again) == passes[2]
    assert visit(0, CropDataset(micrographs, CropGeometry(16, 16), 4, False, centers=ISLANDS)) != passes[0]


def test_an_island_lies_in_the_middle_and_alone():
    micrographs = build(draw_discs([(20, 20), (20, 32)]))
    for angle in (False, True):
        crops = CropDataset(micrographs, CropGeometry(32, 32), 0, True, Variation(any_angle=angle), centers=ISLANDS)
        for number in range(2):
            item = crops[number]
            y, x = np.nonzero(item["island"].numpy() > 0.5)
            assert np.hypot(y.mean() - 15.5, x.mean() - 15.5) < 1
            assert item["island"].sum().item() == pytest.approx(49, rel=0.1)
            assert (item["mask"] == 1).sum() > 70
    both = CropDataset(micrographs, CropGeometry(32, 32), 0, False, centers=ISLANDS, neighbors=True)
    assert both[0]["island"].sum() > 70


def test_beyond_the_edge_lies_the_mirror_image_of_the_micrograph_and_nothing_of_the_island():
    micrographs = build(draw_discs([(6, 53)]))
    crops = CropDataset(micrographs, CropGeometry(32, 32), 0, False, centers=ISLANDS)
    image, mask = crops.cut(0)
    padded = [np.pad(array, 32, mode="symmetric") for array in (micrographs.images[0], micrographs.masks[0])]
    rows, columns = slice(6 - 16 + 32, 6 + 16 + 32), slice(53 - 16 + 32, 53 + 16 + 32)
    assert np.array_equal(image, padded[0][rows, columns])
    assert np.array_equal(mask, padded[1][rows, columns])
    assert (mask == 1).sum() > 100
    assert crops[0]["island"].sum().item() == pytest.approx(49, rel=0.1)


def test_shares_are_areas():
    shown = draw_discs([(30, 30)], radius=9)
    share = Placement(10, 10, 40, 20, 0).cut_share(shown, mirrored=True)
    assert share.sum() * 4 == pytest.approx(shown.sum(), rel=0.005)
    assert ((share > 0.1) & (share < 0.9)).sum() > 10


def test_touching_instances_are_two():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 8:30] = 1
    ids = np.zeros((40, 40), np.uint16)
    ids[10:20, 8:19] = 5
    ids[10:20, 19:30] = 9
    micrographs = build(mask, instances=[ids])
    assert len(ISLANDS.find(micrographs)) == 1
    found = PatchCenters("instances", None, 30, 8).find(micrographs)
    assert [patch.area for patch in found] == [110, 110]
    own = [select_island(patch, micrographs, "instances", neighbors=False) for patch in found]
    assert np.array_equal(own[0], ids == 5)
    assert np.array_equal(own[1], ids == 9)


def test_a_grid_covers_the_micrograph():
    found = PatchCenters("grid", None, 1, 20).find(build(np.zeros((60, 45))))
    assert [patch.center for patch in found] == [(y, x) for y in (10, 30, 50) for x in (10, 30)]


def test_rescaled_they_find_the_same_islands():
    mask = draw_discs([(20, 20), (40, 40)], radius=6)
    halved = build(mask[::2, ::2])
    assert len(PatchCenters("islands", None, 100, 8).find(build(mask))) == 2
    assert PatchCenters("islands", None, 100, 8).find_any(halved) == []
    assert len(PatchCenters("islands", None, 100, 8).rescale(0.5).find(halved)) == 2


@pytest.mark.parametrize(
    ("centers", "mask", "names", "message"),
    [
        (
            ISLANDS,
            np.zeros((40, 40)),
            ("matrix", "island"),
            r"no islands of island with at least 30 px .* lower min_area",
        ),
        (ISLANDS, np.zeros((40, 40)), ("matrix",), r"only one class \(matrix\)"),
        (ISLANDS, np.full((40, 40), 255), (), "has no classes"),
        (PatchCenters("islands", ("films",), 1, 8), np.zeros((40, 40)), ("a", "b"), "'films' is not a class of set"),
        (
            PatchCenters("instances", None, 1, 8),
            np.zeros((40, 40)),
            ("a", "b"),
            "has no instances/ folder next to its masks",
        ),
    ],
)
def test_what_cannot_be_is_one_line(centers, mask, names, message):
    with pytest.raises(InputError, match=message):
        centers.find(build(mask, names=names))


def test_patches_must_fit():
    with pytest.raises(InputError, match="crop_size 64 px exceeds micrograph m0 of 60x60 px"):
        CropDataset(build(draw_discs([(30, 30)])), CropGeometry(16, 64), 0, False, centers=ISLANDS)

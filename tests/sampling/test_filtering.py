"""Which pairs are kept: the judgment of one pair, near-copies found whichever way round, whole runs."""

import json

import numpy as np
import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.sample import FilterSection
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry, apply_symmetry
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.files import load_json
from steelgen.sampling.filtering import NEAR_COPY, PairFilter, build_filter, find_disagreement, resolve_thresholds
from tests.sampling.test_sample import draw, read_all


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STEELGEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def rough_micrographs(count=3, size=(150, 180), seed=0):
    import scipy.ndimage

    rng = np.random.default_rng(seed)
    fields = [scipy.ndimage.gaussian_filter(rng.normal(size=size), 1.5) for _ in range(count)]
    images = [(127 + 40 * field / field.std()).clip(0, 255).astype(np.uint8) for field in fields]
    info = DatasetInfo(name="rough", class_names=["matrix", "island"])
    return Micrographs(
        info, [f"m{index}" for index in range(count)], images, [(i > 140).astype(np.uint8) for i in images]
    )


def test_disagreement_is_the_first_class_below_its_threshold():
    mask = np.zeros((10, 10), np.uint8)
    mask[:5] = 1
    mask[9, 9] = 2
    predicted = np.zeros((10, 10), np.uint8)
    predicted[:4] = 1  # IoU of class 1 is 40/50, of class 0 49/60; class 2 is missed
    assert find_disagreement(mask, predicted, [0.8, 0.8, 0.5], min_share=0.02) is None
    assert find_disagreement(mask, predicted, [0.8, 0.81, 0.5], min_share=0.02) == 1
    assert find_disagreement(mask, predicted, [0.82, 0.81, 0.5], min_share=0.02) == 0
    assert find_disagreement(mask, predicted, [0.8, 0.8, 0.5], min_share=0.01) == 2
    assert find_disagreement(mask, predicted, [0.8, 0.8, 0.0], min_share=0.0) is None
    assert find_disagreement(np.full((4, 4), 255, np.uint8), predicted[:4, :4], [1, 1, 1], 0.0) is None


def test_thresholds_by_class_name():
    info = DatasetInfo(name="x", class_names=["matrix", "island"])
    assert resolve_thresholds(0.4, info) == [0.4, 0.4]
    assert resolve_thresholds({"island": 0.7}, info) == [0.0, 0.7]
    with pytest.raises(InputError, match="'iland' is not among the classes matrix, island"):
        resolve_thresholds({"iland": 0.7}, info)


@pytest.mark.parametrize("geometry", [CropGeometry(48, 48), CropGeometry(48, 72)])
def test_a_copy_is_found_whichever_way_round(geometry):
    micrographs = rough_micrographs()
    search = CopySearch(micrographs, geometry)
    images, _ = cut_crops(micrographs, geometry, 8, seed=3, augment=False)
    rng = np.random.default_rng(0)
    for symmetry, image in enumerate(images):
        turned = apply_symmetry(image, symmetry)
        match = search.correlate(turned)
        assert match.correlation > 0.999
        noisy = (0.8 * turned + 20 + rng.normal(0, 6, turned.shape)).clip(0, 255).astype(np.uint8)
        found = search.correlate(noisy)
        assert found.correlation > 0.95
        assert found[1:] == match[1:]


def test_a_copy_at_another_scale_is_found():
    micrographs = rough_micrographs()
    geometry = CropGeometry(48, 64, (0.8, 1.25))
    images, _ = cut_crops(micrographs, geometry, 6, seed=3, augment=True)
    search = CopySearch(micrographs, geometry, scale_range=geometry.scale_range)
    assert min(search.correlate(image).correlation for image in images) > 0.95


def test_other_images_of_the_same_kind_are_no_copies():
    search = CopySearch(rough_micrographs(), CropGeometry(48, 48))
    others, _ = cut_crops(rough_micrographs(seed=9), CropGeometry(48, 48), 12, seed=3)
    assert max(search.correlate(image).correlation for image in others) < 0.6
    assert search.correlate(np.full((48, 48), 9, np.uint8)).correlation == -1
    assert search.correlate(np.zeros((300, 300), np.uint8)).correlation == -1


def test_a_segmenter_keeps_real_pairs_and_drops_swapped_ones(trained):
    dataset, _ = trained
    config = FilterSection(dataset=dataset, min_iou=0.5, max_correlation=1, segmenter={"steps": 60, "enlargement": 2})
    micrographs = load_micrographs(dataset, "test")
    geometry = CropGeometry(16, 24)
    pair_filter = build_filter(config, micrographs.info, geometry)
    images, masks = cut_crops(micrographs, geometry, 12, seed=1)
    kept = [pair_filter.judge(image, mask) is None for image, mask in zip(images, masks, strict=True)]
    assert pair_filter.describe()["not_judged"] == []
    assert min(pair_filter.describe()["real_iou"].values()) > 0.3
    swapped = [(mask + 1) % 3 for mask in masks]
    reasons = [pair_filter.judge(image, mask) for image, mask in zip(images, swapped, strict=True)]
    assert np.mean(kept) > 0.7
    assert all(reason.startswith("segmenter disagrees on ") for reason in reasons)
    copies = PairFilter(
        config.model_copy(update={"max_correlation": 0.9}), None, CopySearch(micrographs, geometry), micrographs.info
    )
    assert copies.judge(images[0], masks[0]) == NEAR_COPY


def test_a_class_that_the_segmenter_does_not_find_drops_no_pair():
    info = DatasetInfo(name="x", class_names=["matrix", "island", "film"])
    config = FilterSection(dataset="x", min_iou=0.5)

    class AllMatrix(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def forward(self, images):
            return self.bias[None, :, None, None].expand(len(images), 3, *images.shape[-2:])

    mask = np.zeros((16, 16), np.uint8)
    mask[:4] = 2
    image = np.zeros((16, 16), np.uint8)
    strict = PairFilter(config, AllMatrix(), None, info)
    assert strict.judge(image, mask) == "segmenter disagrees on film"
    assert strict.describe()["real_iou"] is None
    modest = PairFilter(config, AllMatrix(), None, info, np.array([0.9, np.nan, 0.29]))
    assert modest.judge(image, mask) is None
    assert modest.describe() == {
        "min_iou": {"matrix": 0.5, "island": 0.5, "film": 0.0},
        "real_iou": {"matrix": 0.9, "island": None, "film": 0.29},
        "not_judged": ["film"],
    }
    mask[:12] = 1
    assert modest.judge(image, mask) == "segmenter disagrees on matrix"


@pytest.fixture(scope="module")
def threshold(trained, tmp_path_factory):
    """The median correlation of unfiltered images: about half of all images pass it."""
    dataset, _ = trained
    out = draw(trained, tmp_path_factory.mktemp("plain") / "out", num_samples=16)
    from steelgen.data.images import load_image

    search = CopySearch(load_micrographs(dataset, "train"), CropGeometry(16, 24))
    found = [search.correlate(load_image(path), 0.0).correlation for path in sorted((out / "samples").iterdir())]
    return float(np.median(found))


def test_dropped_images_are_drawn_anew_until_all_are_there(trained, threshold, tmp_path):
    values = {"dataset": str(trained[0]), "min_iou": 0, "max_correlation": threshold, "max_attempts": 60}
    out = draw(trained, tmp_path / "out", filter=values, num_samples=6, batch_size=4)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"samples/{index:06d}.png" for index in range(6)]
    attempts = [sum(row["dropped"].values()) for row in rows]
    assert [row["seed"] for row in rows] == [index + attempt * 10**9 for index, attempt in enumerate(attempts)]
    sampling = load_json(out / "sampling.json")
    assert sampling["kept"] == 6
    assert sampling["dropped"] == ({NEAR_COPY: sum(attempts)} if sum(attempts) else {})
    assert sum(attempts) > 0

    one = draw(trained, tmp_path / "one", filter=values, num_samples=6, batch_size=1)
    assert read_all(one) == read_all(out)
    part = draw(trained, tmp_path / "part", filter=values, num_samples=3)
    (part / "samples/000001.png").unlink()
    draw(trained, part, filter={**values, "max_attempts": 70}, num_samples=6)
    assert read_all(part) == read_all(out)


def test_a_filter_that_nothing_passes_says_so(trained, tmp_path):
    values = {"dataset": str(trained[0]), "min_iou": 0, "max_correlation": 1e-6, "max_attempts": 2}
    with pytest.raises(InputError, match=r"filter: image \d was dropped in all of 2 attempts \(2 near copy"):
        draw(trained, tmp_path / "out", filter=values)
    with pytest.raises(InputError, match=r"filter\.min_iou"):
        draw(trained, tmp_path / "other", filter={"dataset": str(trained[0]), "min_iou": {"perlite": 0.5}})
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="min_iou"):
        parse_config({"dataset": "x", "min_iou": 2}, FilterSection)

"""Crops: one placement for image, mask and instances; variations; the cache; instance edges in the batch."""

import numpy as np
import pytest
import scipy.ndimage

from steelgen.data.cache import decode_split, open_cached_split
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.instances import save_instances
from steelgen.data.placement import CropGeometry, Placement, Variation, sample_placement

GEOMETRY = CropGeometry(image_size=16, crop_size=24)


def test_rotation_agrees_with_scipy():
    """Compares a rotated crop to scipy's rotation of the straight one, inside the inscribed circle."""
    image = scipy.ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (60, 60)), 3).astype(np.uint8)
    straight = Placement(10, 12, 33, 33, symmetry=0)
    turned = Placement(10, 12, 33, 33, symmetry=0, angle=np.deg2rad(30))
    expected = scipy.ndimage.rotate(straight.cut_image(image).astype(float), 30, reshape=False, order=1)
    rows, columns = np.mgrid[:33, :33] - 16
    inside = np.hypot(rows, columns) < 14
    assert np.abs(turned.cut_image(image)[inside] - expected[inside]).max() <= 1.5


def test_image_mask_and_instances_stay_together():
    """A mask that is cut as an image must match the mask that is cut as a mask."""
    rng = np.random.default_rng(1)
    labels = np.kron(rng.integers(0, 3, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    for number in range(20):
        placement = sample_placement(64, 64, GEOMETRY, np.random.default_rng(number), True, Variation(any_angle=True))
        mask, ids = placement.cut_mask(labels), placement.cut_instances(labels.astype(np.uint16))
        shown = np.round(placement.cut_image(labels * 100) / 100).astype(int)
        assert (mask == shown).mean() > 0.8  # they differ along edges, where the image blends
        assert (mask == ids).mean() > 0.8


def test_brightness_and_contrast_stay_in_range():
    image = np.full((40, 40), 120, np.uint8)
    image[::2] = 140
    levels, spreads = [], []
    for number in range(200):
        placement = sample_placement(
            40, 40, CropGeometry(24, 24), np.random.default_rng(number), False, Variation(brightness=0.1, contrast=0.3)
        )
        crop = placement.cut_image(image)
        levels.append(crop.mean() - 130)
        spreads.append(crop.std() / 10)
    assert -0.1 * 255 - 1 <= min(levels) < -15
    assert 15 < max(levels) <= 0.1 * 255 + 1
    assert np.exp(-0.3) - 0.06 <= min(spreads) < 0.85
    assert 1.2 < max(spreads) <= np.exp(0.3) + 0.06


def test_no_variation_is_the_plain_crop():
    plain = sample_placement(64, 80, GEOMETRY, np.random.default_rng(3), True)
    assert sample_placement(64, 80, GEOMETRY, np.random.default_rng(3), True, Variation()) == plain


def test_micrographs_come_from_the_cache_and_without_one(tiny_dataset, tmp_path, monkeypatch):
    decoded, cached = (
        decode_split(tiny_dataset, "train"),
        open_cached_split(tiny_dataset, "train", 1, tmp_path / "cache"),
    )
    assert isinstance(cached.images[0], np.memmap)
    for first, second in zip(decoded.images + decoded.masks, cached.images + cached.masks, strict=True):
        assert np.array_equal(first, second)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("STEELGEN_CACHE", str(blocked))
    assert np.array_equal(load_micrographs(tiny_dataset, "train").images[0], decoded.images[0])


def test_instance_edges_separate_touching_islands_in_the_batch(tiny_dataset):
    """Touching instances of one class have an edge between them that is not in the mask."""
    micrographs = load_micrographs(tiny_dataset, "train")
    for stem, mask in zip(micrographs.stems, micrographs.masks, strict=True):
        ids = np.ones(mask.shape, np.uint16)
        ids[:, 24:] = 2
        save_instances(tiny_dataset / "train" / "instances" / f"{stem}.png", ids)
    micrographs = load_micrographs(tiny_dataset, "train")
    dataset = CropDataset(micrographs, CropGeometry(32, 32), seed=0, augment=False, instance_edges=True)
    for number in range(10):
        left = dataset.place(number).left
        edges = dataset[number]["instance_edges"].numpy()
        expected = np.zeros((32, 32), bool)
        for column in (23 - left, 24 - left):
            if 0 < 24 - left < 32:
                expected[:, column] = True
        assert np.array_equal(edges, expected)
    assert "instance_edges" not in CropDataset(micrographs, CropGeometry(32, 32), 0, False)[0]


def test_pixel_size_follows_the_resize():
    """128 px of 0.5 µm become 64 px of 1 µm."""
    geometry = CropGeometry(image_size=64, crop_size=128)
    assert geometry.scale_pixel_size(0.5) * 64 == 0.5 * 128
    assert geometry.scale_pixel_size(None) is None


@pytest.mark.parametrize("augment", [True, "mirror", False])
def test_crops_are_a_function_of_seed_and_number(tiny_dataset, augment):
    micrographs = load_micrographs(tiny_dataset, "train")
    first, second = (CropDataset(micrographs, GEOMETRY, 5, augment, Variation(True, 0.1, 0.1)) for _ in range(2))
    assert np.array_equal(first.cut(77)[0], second.cut(77)[0])
    assert not np.array_equal(first.cut(77)[0], first.cut(78)[0])

"""Crops around rare classes, gray levels that vary, rectangles that are pasted."""

import numpy as np
import pytest
import torch

from steelgen.data.balanced_crops import BalancedCrops, paste_rectangles, variation_rng, vary_images
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry

GEOMETRY = CropGeometry(16, 16, (0.7, 1.4))


@pytest.fixture
def micrographs():
    rng = np.random.default_rng(0)
    masks = [np.zeros((60, 80), np.uint8) for _ in range(5)]
    masks[3][41, 7] = 1
    images = [rng.integers(0, 256, mask.shape, np.uint8) for mask in masks]
    return Micrographs(DatasetInfo(name="x", class_names=["matrix", "rare"]), list("abcde"), images, masks)


def test_without_a_share_they_are_the_usual_crops(micrographs):
    usual, balanced = CropDataset(micrographs, GEOMETRY, 3, augment=True), BalancedCrops(micrographs, GEOMETRY, 3, 0.0)
    for number in range(12):
        for found, wanted in zip(balanced.cut(number), usual.cut(number), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_a_single_rare_pixel_is_found(micrographs):
    crops = BalancedCrops(micrographs, GEOMETRY, 3, 0.5)
    holding = []
    for number in range(400):
        placement, index = crops.place(number), crops.micrograph_index(number)
        assert 0 <= placement.top <= 60 - placement.edge
        assert 0 <= placement.left <= 80 - placement.edge
        within = np.array([41 - placement.top, 7 - placement.left]) / placement.edge
        holding.append(index == 3 and bool(np.all((within >= 0) & (within < 1))))
    # Of the half that is cut around a class nearly all are around the class of one pixel; at random 2 % hold it.
    assert 0.42 < np.mean(holding) < 0.6
    again = BalancedCrops(micrographs, GEOMETRY, 3, 0.5)
    assert [again.place(number) for number in (7, 300)] == [crops.place(number) for number in (7, 300)]
    assert crops.cut(7)[1].shape == (16, 16)


def test_gray_levels_vary_within_their_limits():
    images = torch.full((64, 1, 8, 8), 0.2)
    rng = variation_rng(0, 1)
    brighter = vary_images(images, rng, brightness=0.1, contrast=0.5)
    assert (brighter - images).abs().max() <= 0.2 + 1e-6
    assert (brighter - images).abs().max() > 0.15
    torch.testing.assert_close(vary_images(images, rng), images)
    powers = vary_images(images, rng, gamma=0.4)
    assert torch.log(torch.log((powers + 1) / 2) / np.log(0.6)).abs().max() <= 0.4 + 1e-4
    noisy = vary_images(torch.zeros(64, 1, 8, 8), rng, noise=0.05)
    assert 0.3 < (noisy.std(dim=(1, 2, 3)) > 0).float().mean() < 0.7
    steps = torch.zeros(64, 1, 8, 8)
    steps[..., 4:] = 1
    blurred = vary_images(steps, rng, blur=2.0)
    assert 0.05 < ((blurred - steps).abs().amax(dim=(1, 2, 3)) > 0.01).float().mean() < 0.4
    torch.testing.assert_close(
        vary_images(steps, variation_rng(4, 2), 0.1, 0.3, 0.4, 0.05, 1.0),
        vary_images(steps, variation_rng(4, 2), 0.1, 0.3, 0.4, 0.05, 1.0),
        rtol=0,
        atol=0,
    )


def test_a_pasted_rectangle_brings_its_mask():
    masks = torch.arange(4)[:, None, None].repeat(1, 20, 20)
    images = masks[:, None].float()
    same = paste_rectangles(images, masks, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(same, (images, masks))
    pasted, labels = paste_rectangles(images, masks, 1.0, np.random.default_rng(0))
    torch.testing.assert_close(pasted[:, 0].long(), labels)
    for index in range(4):
        assert set(labels[index].unique().tolist()) == {index, (index + 1) % 4}
        assert 0.05 < (labels[index] != index).float().mean() < 0.55

"""Coarse images of refining networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from steelgen.diffusion.randomness import CropRandomness
from steelgen.diffusion.refinement import (
    DegradationRandomness,
    agree_with,
    blur_each,
    degrade,
    draw_coarse_noise,
    enlarge,
    shrink,
)


def wave(height, width, period=16.0):
    """A smooth image (1, 1, H, W) in [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.sin(2 * torch.pi * rows / period) * torch.cos(2 * torch.pi * columns / period))[None, None]


def test_a_smooth_image_passes_through_the_degradation_unchanged():
    image = wave(64, 64, period=32)
    nothing = torch.zeros(1)
    coarse = degrade(image, 2, nothing, 0.6, torch.randn(1, 1, 32, 32), nothing)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert (coarse - image)[inner].abs().max() < 0.02


def test_a_pattern_finer_than_the_coarse_pixels_is_lost():
    stripes = torch.ones(1, 1, 16, 16)
    stripes[..., ::2] = -1
    assert degrade(stripes, 2, torch.zeros(1), 0.0, torch.zeros(1, 1, 8, 8), torch.zeros(1)).abs().max() < 1e-6


def test_shrinking_repeats_edges_that_are_no_multiple_of_the_factor():
    image = torch.arange(15.0).view(1, 1, 3, 5)
    padded = np.pad(image[0, 0].numpy(), ((0, 1), (0, 1)), mode="edge")
    expected = padded.reshape(2, 2, 3, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink(image, 2)[0, 0].numpy(), expected)


def test_each_image_is_blurred_by_its_own_gaussian():
    images = torch.randn(3, 2, 24, 20)
    deviations = torch.tensor([0.0, 0.8, 1.5])
    blurred = blur_each(images, deviations, 1.5)
    for image, deviation, result in zip(images, deviations, blurred, strict=True):
        expected = [gaussian_filter(plane, float(deviation), mode="nearest", radius=5) for plane in image.numpy()]
        np.testing.assert_allclose(result.numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (31, 45)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_images_agree_with_their_coarse_image_when_shrunk(size, factor):
    torch.manual_seed(0)
    truth = torch.rand(2, 1, *size) * 2 - 1
    coarse = shrink(truth, factor)
    wrong = enlarge(coarse, factor, size) + 0.5 * torch.randn(2, 1, *size)
    error = shrink(agree_with(coarse, wrong, factor), factor) - coarse
    assert 10 * torch.log10(4 / error.square().mean()) > 40  # PSNR in dB of a range of 2
    assert 10 * torch.log10(4 / (shrink(wrong, factor) - coarse).square().mean()) < 37


def test_the_degradation_of_a_crop_is_a_function_of_seed_and_number():
    others = CropRandomness(3, (1, 16, 16), 0.5)
    randomness = DegradationRandomness(others, 3, (1, 8, 8))
    first, again, next_crop = randomness(5), randomness(5), randomness(6)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    for name in ("coarse_noise_image", "blur", "coarse_noise"):
        assert not torch.equal(first[name], next_crop[name])
    assert torch.equal(first["noise"], others(5)["noise"])
    shares = torch.stack([randomness(number)["blur"] for number in range(400)])
    assert shares.min() >= 0
    assert shares.max() < 1
    assert abs(float(shares.mean()) - 0.5) < 0.05
    fixed = DegradationRandomness(others, 3, (1, 8, 8), 0.25)(5)
    assert (fixed["blur"], fixed["coarse_noise"]) == (0.25, 0.25)


def test_noise_on_coarse_images_is_independent_of_the_other_noise_of_a_seed():
    noise = draw_coarse_noise((1, 16, 16), [4, 9])
    assert torch.equal(noise[1], draw_coarse_noise((1, 16, 16), [9])[0])
    other = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(4))
    assert abs(float(np.corrcoef(noise[0].flatten(), other.flatten())[0, 1])) < 0.2

"""What a codec keeps: against torchmetrics, scikit-image and a known blur, and codecs that lose films."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.classification import MulticlassRecall

from steelgen.evaluation.reconstruction import compute_codec_recall, compute_kept_detail, compute_psnr
from steelgen.training.codec_check import format_recalls

NAMES = ["matrix", "island", "film"]


def draw_masks():
    """Islands of 12 px, and films of 2 px, on a matrix."""
    masks = np.zeros((2, 64, 64), np.uint8)
    for index, mask in enumerate(masks):
        mask[6:18, 6:18] = mask[30:42, 20 + index : 32 + index] = 1
        mask[50:52, 4:60] = mask[4:48, 54:56] = 2
    return masks


def blur(masks, sigma):
    """A lossy codec: shares of the classes, blurred."""
    shares = [gaussian_filter((masks == index).astype(float), (0, sigma, sigma)) for index in range(len(NAMES))]
    return np.argmax(shares, axis=0).astype(np.uint8)


def test_recall_is_that_of_torchmetrics_without_ignored_pixels():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (4, 24, 24)).astype(np.uint8)
    masks[0, :5] = 255
    found = np.where(rng.random(masks.shape) < 0.7, masks, rng.integers(0, 3, masks.shape)).clip(max=2).astype(np.uint8)
    metric = MulticlassRecall(3, average="none", ignore_index=255)
    wanted = metric(torch.from_numpy(found).long(), torch.from_numpy(masks).long())
    recalls = compute_codec_recall(masks, found, NAMES)
    np.testing.assert_allclose([each.recall for each in recalls], wanted.numpy(), atol=1e-6)
    assert sum(each.pixels for each in recalls) == (masks != 255).sum()


def test_a_perfect_codec_passes():
    recalls = compute_codec_recall(draw_masks(), draw_masks(), NAMES)
    assert [each.recall for each in recalls] == [1, 1, 1]
    assert recalls[2].thin_pixels == 2 * (2 * 56 + 2 * 44)
    assert recalls[1].thin_pixels == 0
    assert math.isnan(recalls[1].thin_recall)
    assert not any("warning" in line for line in format_recalls(recalls))


def test_a_lossy_codec_fails_where_it_loses_films():
    masks = draw_masks()
    recalls = compute_codec_recall(masks, blur(masks, 1.5), NAMES)
    assert recalls[0].recall > 0.95
    assert recalls[2].thin_recall < 0.5
    warnings = [line for line in format_recalls(recalls) if line.startswith("warning")]
    assert any("thin parts of film" in line and "smaller generator.downsample_factor" in line for line in warnings)
    assert not any("matrix" in line for line in warnings)
    few = recalls[2]._replace(pixels=50, thin_pixels=50)
    assert not any("warning" in line for line in format_recalls([few]))


def test_thin_parts_of_a_class_with_islands_are_judged_apart():
    """A film of a class whose islands survive is lost without being seen in the recall of the class."""
    masks = draw_masks()
    masks[masks == 2] = 1
    masks[:, 20:50, :50] = 1
    recalls = compute_codec_recall(masks, blur(masks, 1.5), NAMES)
    assert recalls[1].recall > 0.85
    assert recalls[1].thin_recall < 0.5


def test_psnr_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 20, 20)).astype(np.uint8)
    others = (images.astype(int) + rng.integers(-9, 10, images.shape)).clip(0, 255).astype(np.uint8)
    assert compute_psnr(images, others) == pytest.approx(peak_signal_noise_ratio(images, others))
    assert compute_psnr(images, images) == math.inf


@pytest.mark.parametrize("channels", [(), (3,)])
def test_kept_detail_of_a_blur_is_its_transfer_function(channels):
    rng = np.random.default_rng(0)
    images = rng.normal(128, 25, (16, 64, 64, *channels)).clip(0, 255).astype(np.uint8)
    sigma = 0.5
    spatial = (0, sigma, sigma, *(0 for _ in channels))
    blurred = gaussian_filter(images.astype(float), spatial, mode="wrap").round().astype(np.uint8)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    octave = (frequency >= 0.25) & (frequency < 0.5)
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    response = np.abs(np.fft.fft(kernel / kernel.sum(), 64)) ** 2
    wanted = np.outer(response, response)[octave].mean()
    assert compute_kept_detail(images, blurred) == pytest.approx(wanted, rel=0.05)
    assert compute_kept_detail(images, images) == 1
    assert math.isnan(compute_kept_detail(np.zeros_like(images), images))

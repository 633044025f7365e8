"""Pixel classifiers on features: against enlarged features, scipy's divergence, and skimage."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from skimage.filters import gaussian
from torch import nn

from steelgen.models.multiscale import MultiscaleFeatures
from steelgen.models.pixel_heads import (
    FeatureSegmenter,
    PixelHeads,
    compute_agreement,
    pad_to_multiple,
    sample_maps,
)

SIZE = (12, 16)


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, count, *size, generator=generator) for count, size in ((5, (3, 4)), (3, (6, 8)), (2, SIZE))]


@pytest.fixture
def heads():
    torch.manual_seed(1)
    heads = PixelHeads(10, 3, 4)
    heads.mean.copy_(torch.randn(10))
    heads.deviation.copy_(torch.rand(10) + 0.5)
    for module in heads.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return heads.eval()


def enlarge(maps):
    """Features of all pixels, (pixels, channels)."""
    return torch.cat([F.interpolate(part, SIZE, mode="bilinear") for part in maps], dim=1)[0].flatten(1).T


def test_features_of_pixels_are_those_of_enlarged_maps(maps):
    rows, columns = torch.arange(SIZE[0]).repeat_interleave(SIZE[1]), torch.arange(SIZE[1]).repeat(SIZE[0])
    torch.testing.assert_close(sample_maps(maps, rows, columns, SIZE), enlarge(maps), atol=1e-5, rtol=0)


def test_maps_are_classified_as_their_enlarged_features_would_be(maps, heads):
    with torch.inference_mode():
        expected = heads(enlarge(maps).expand(4, -1, -1)).softmax(dim=2)  # (4, pixels, 3)
        found = heads.predict_maps(maps, SIZE)
    assert found.shape == (4, 1, 3, *SIZE)
    torch.testing.assert_close(found[:, 0].flatten(2).movedim(1, 2), expected, atol=1e-5, rtol=0)


def test_images_of_any_size_get_probabilities_and_the_agreement(heads):
    class Halved(nn.Module):
        stride = 4

        def forward(self, images):
            return [F.avg_pool2d(images.expand(-1, 10, -1, -1), 4)]

    image = torch.rand(2, 1, 10, 7, generator=torch.Generator().manual_seed(2))
    segmenter = FeatureSegmenter(Halved(), heads)
    with torch.inference_mode():
        predicted = segmenter.predict(image)
        maps = [F.avg_pool2d(pad_to_multiple(image, 4).expand(-1, 10, -1, -1), 4)]
        members = heads.predict_maps(maps, (12, 8))[..., :10, :7]
        torch.testing.assert_close(predicted[:, :3], members.mean(dim=0))
        torch.testing.assert_close(predicted[:, 3], compute_agreement(members))
        torch.testing.assert_close(segmenter(image).softmax(dim=1), predicted[:, :3])


def test_agreement_is_one_minus_the_normalized_divergence():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], (2, 6)).astype(np.float32)  # two members, six pixels
    found = compute_agreement(torch.from_numpy(probabilities).movedim(2, 1)[:, None, :, :, None])[0, :, 0]
    expected = [1 - jensenshannon(*pair, base=2) ** 2 for pair in probabilities.swapaxes(0, 1)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Three members sure of two classes: the mean has the entropy of (2/3, 1/3); two classes allow log 2.
    sure = torch.tensor([[1.0, 0], [1, 0], [0, 1]])[:, None, :, None, None]
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert compute_agreement(sure).item() == pytest.approx(1 - entropy / np.log(2))


@pytest.mark.parametrize("channels", [1, 3])
def test_multiscale_features_have_the_gray_levels_of_all_scales(channels):
    image = torch.rand(1, channels, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (found,) = MultiscaleFeatures(4.0)(image)
    assert found.shape == (1, 4 * 4 * channels, 20, 24)  # sigma 0.5, 1, 2, 4: level, gradient, two eigenvalues
    for number, sigma in enumerate((0.5, 1, 2, 4)):
        smooth = gaussian(((image[0, 0] + 1) / 2).numpy(), sigma)
        np.testing.assert_allclose(found[0, 4 * number], smooth, atol=1e-5)

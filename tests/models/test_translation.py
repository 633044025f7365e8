"""Networks of translation: nothing moves, windows leave no seams, patches are as wide as they say."""

import numpy as np
import pytest
import torch
from torch import nn

from steelgen.generators.translation.windows import measure_statistics, translate_in_windows
from steelgen.models.patch_discriminator import PatchDiscriminator
from steelgen.models.translation import (
    PatchProjector,
    SpectrumDiscriminator,
    TranslationGenerator,
    fix_statistics,
)


def average_everywhere(network):
    """Makes every convolution a mean over its inputs, symmetric about its center."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    return network


def test_impulses_stay_where_they_are():
    """Mean over the four positions within a feature; transposed or 3 px strided convolutions would move them."""
    network = average_everywhere(TranslationGenerator(1, 4, 1))
    places, offsets = torch.arange(64, dtype=torch.float32), []
    for place in range(28, 32):
        images = torch.zeros(1, 1, 64, 64)
        images[0, 0, place, place] = 1
        with torch.no_grad():
            answer = (network(images, normalize=lambda features: features) - images)[0, 0]
        assert answer.sum() > 0.1
        for axis in (0, 1):
            offsets.append((answer.sum(axis) @ places / answer.sum() - place).item())
    assert sum(offsets) / len(offsets) == pytest.approx(0, abs=1e-3)


def test_images_move_with_their_input():
    torch.manual_seed(0)
    network, images = TranslationGenerator(1, 4, 2), torch.randn(1, 1, 160, 160)
    statistics = measure_statistics(network, images, None, 32)
    with torch.no_grad():
        still = network(images, None, fix_statistics(statistics))
        moved = network(images.roll((8, 4), (2, 3)), None, fix_statistics(statistics))
    inner = slice(60, 100)
    torch.testing.assert_close(moved.roll((-8, -4), (2, 3))[..., inner, inner], still[..., inner, inner])
    assert (still - images).std() > 1e-3


def test_nothing_beyond_the_reach_has_an_influence():
    torch.manual_seed(0)
    network, images = TranslationGenerator(1, 4, 2), torch.randn(1, 1, 160, 160)
    statistics = measure_statistics(network, images, None, 32)
    images.requires_grad_()
    network(images, None, fix_statistics(statistics))[0, 0, 80, 80].backward()
    rows = images.grad[0, 0].abs().sum(dim=1).nonzero()[:, 0]
    farthest = max(80 - int(rows.min()), int(rows.max()) - 80)
    assert farthest <= network.reach <= farthest + 8


def test_row_noise_has_no_influence_beyond_the_reach_either():
    torch.manual_seed(0)
    network, images = TranslationGenerator(1, 4, 2, row_noise_channels=2), torch.randn(1, 1, 192, 16)
    noise = torch.randn(1, 2, 192, 1).expand(-1, -1, -1, 16).contiguous()
    statistics = measure_statistics(network, images, noise, 16)
    noise.requires_grad_()
    network(images, noise, fix_statistics(statistics))[0, 0, 96, 8].backward()
    rows = noise.grad[0].abs().sum(dim=(0, 2)).nonzero()[:, 0]
    farthest = max(96 - int(rows.min()), int(rows.max()) - 96)
    assert farthest <= network.reach <= farthest + 8


def test_the_filter_of_row_noise_is_that_of_numpy():
    """One filter per pair of channels across rows; the result has variance 1 in every image."""
    torch.manual_seed(0)
    network, noise = TranslationGenerator(1, 4, 1, row_noise_channels=2), torch.randn(1, 2, 64, 1)
    _, maps = network(torch.zeros(1, 1, 64, 8), noise.expand(-1, -1, -1, 8), features=True)
    taps = network.row_filter.conv.weight.detach().numpy()[..., 0]
    for channel in range(2):
        padded = np.pad(noise[0, :, :, 0].numpy(), ((0, 0), (15, 15)), mode="reflect")
        found = sum(np.correlate(padded[index], taps[channel, index]) for index in range(2))
        expected = (found - found.mean()) / np.sqrt(found.var() + 1e-5)
        assert maps[0][0, 1 + channel].T.detach().numpy() == pytest.approx(np.tile(expected, (8, 1)), abs=1e-4)


@pytest.mark.parametrize("style_dim", [0, 3])
@pytest.mark.parametrize(("noise_channels", "row_noise_channels"), [(0, 0), (2, 0), (1, 2)])
def test_windows_leave_no_seams(noise_channels, row_noise_channels, style_dim):
    torch.manual_seed(0)
    network = TranslationGenerator(1, 4, 2, noise_channels, row_noise_channels, style_dim).eval()
    images, noise = torch.randn(1, 1, 148, 100), None
    if noise_channels or style_dim:
        rows = torch.randn(1, row_noise_channels, 148, 1).expand(-1, -1, -1, 100)
        style = torch.randn(1, style_dim, 1, 1).expand(-1, -1, 148, 100)
        noise = torch.cat([torch.randn(1, noise_channels, 148, 100), rows, style], dim=1)
    with torch.no_grad():
        whole = translate_in_windows(network, images, noise, 32, core=256)
        torch.testing.assert_close(translate_in_windows(network, images, noise, 32, core=32), whole, atol=1e-5, rtol=0)
        square = images[..., :32, :32], None if noise is None else noise[..., :32, :32]
        torch.testing.assert_close(translate_in_windows(network, *square, 32), network(*square), atol=1e-5, rtol=0)


def test_a_style_modulates_each_image_by_its_own_numbers():
    """Of the output, brightness and contrast are a linear function of the style, as are features after each norm."""
    torch.manual_seed(0)
    network = TranslationGenerator(1, 4, 1, style_dim=2)
    images, styles = (
        torch.randn(1, 1, 16, 16).expand(3, -1, -1, -1),
        torch.tensor([[0.0, 0.0], [1.0, -2.0], [2.0, -4.0]]),
    )
    noise = styles[..., None, None].expand(-1, -1, 16, 16)
    with torch.no_grad():
        for parts in (network.modulate_up, [network.blocks[0].modulate]):
            for part in parts:
                part.layer.weight.zero_()
        drawn = network(images, noise)
        plain = network(images, torch.zeros_like(noise))
        scale, shift = (styles @ network.modulate_output.layer.weight.T).unbind(dim=1)
        torch.testing.assert_close(drawn, plain * (1 + scale)[:, None, None, None] + shift[:, None, None, None])
        nn.init.normal_(network.modulate_up[0].layer.weight)
        again = network(images, noise)
    torch.testing.assert_close(again[0], plain[0])
    assert not torch.allclose(again[1], drawn[1], atol=1e-3)


def test_statistics_are_those_of_the_whole_image():
    """In front of the first norm, features of windows are those of the image but for the padding."""
    torch.manual_seed(0)
    network, images = TranslationGenerator(1, 4, 1), torch.randn(1, 1, 128, 192)
    with torch.no_grad():
        features = network.first(images)
        mean, variance = measure_statistics(network, images, None, 64)[0]
    torch.testing.assert_close(mean, features.mean((2, 3), keepdim=True), atol=0.01, rtol=0)
    torch.testing.assert_close(variance, features.var((2, 3), keepdim=True), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_patches_are_as_wide_as_documented(layers, patch):
    torch.manual_seed(0)
    images = torch.randn(1, 1, 160, 160, requires_grad=True)
    scores = PatchDiscriminator(1, 4, layers)(images)[0]
    scores[scores.shape[0] // 2, scores.shape[1] // 2].backward()
    rows = images.grad[0, 0].abs().sum(dim=1).nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == patch


def test_noise_of_discriminators_is_only_in_training():
    torch.manual_seed(0)
    judge, images = PatchDiscriminator(1, 4, 1, noise=0.5), torch.randn(2, 1, 16, 16)
    assert not torch.equal(judge(images), judge(images))
    judge.eval()
    assert torch.equal(judge(images), judge(images))


def test_spectra_are_standardized_at_each_frequency():
    torch.manual_seed(0)
    mean, deviation = torch.randn(1, 32, 17), torch.rand(1, 32, 17) + 0.5
    judge = SpectrumDiscriminator(mean, deviation, 4, 2)
    plain = PatchDiscriminator(1, 4, 2)
    plain.load_state_dict({name: value for name, value in judge.state_dict().items() if name in plain.state_dict()})
    spectra = torch.randn(3, 1, 32, 17)
    torch.testing.assert_close(judge(spectra * deviation + mean), plain(spectra))


def test_weights_per_frequency_learn_one_weak_peak():
    """Of spectra that are weak at one frequency; gradient descent finds that frequency."""
    torch.manual_seed(0)
    mean, deviation, spectra = torch.randn(1, 32, 17), torch.rand(1, 32, 17) + 0.5, torch.randn(64, 1, 32, 17)
    judge, plain = SpectrumDiscriminator(mean, deviation, 4, 2, per_frequency=True), PatchDiscriminator(1, 4, 2)
    plain.load_state_dict({name: value for name, value in judge.state_dict().items() if name in plain.state_dict()})
    torch.testing.assert_close(judge(spectra * deviation + mean), plain(spectra))
    weak = spectra.roll(1, dims=0)
    weak[:, 0, 24, 3] -= 3
    gap = judge(spectra * deviation + mean) - judge(weak * deviation + mean)
    gap.mean().backward()
    assert divmod(judge.frequency_weights.grad[0].argmax().item(), 17) == (24, 3)
    with torch.no_grad():
        judge.frequency_weights[0, 24, 3] = 0.25
    expected = plain(spectra) + 0.25 * spectra[:, 0, 24, 3, None, None]
    torch.testing.assert_close(judge(spectra * deviation + mean), expected)


def test_features_are_compared_at_the_chosen_places():
    torch.manual_seed(0)
    project = PatchProjector([3, 5], 6)
    maps, places = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)], [torch.tensor([[9], [63]])] * 1
    places.append(torch.tensor([[2], [15]]))
    vectors = project(maps, places)
    expected = project.layers[0](torch.stack([maps[0][0, :, 1, 1], maps[0][1, :, 7, 7]]))
    torch.testing.assert_close(vectors[0][:, 0], expected / expected.norm(dim=1, keepdim=True))
    expected = project.layers[1](torch.stack([maps[1][0, :, 0, 2], maps[1][1, :, 3, 3]]))
    torch.testing.assert_close(vectors[1][:, 0], expected / expected.norm(dim=1, keepdim=True))

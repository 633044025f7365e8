"""The style-based networks and the masked ones, against what they must equal."""

import pytest
import torch
import torch.nn.functional as F

from steelgen.models.spade_gan import SegmentingDiscriminator, SpadeGenerator, compute_log_odds
from steelgen.models.style_gan import DownBlock, ModulatedConv, StyleDiscriminator, StyleGenerator


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_equals_weights_scaled_and_normalized_for_each_image(demodulate):
    """Eqs. 1 and 3 of the paper, written out: a convolution with weights of its own for each image."""
    torch.manual_seed(0)
    conv = ModulatedConv(5, 7, 6, 3, demodulate)
    features, style = torch.randn(4, 5, 8, 8), torch.randn(4, 6)
    found = conv(features, style)
    for index in range(4):
        weights = conv.weight / (5 * 9) ** 0.5 * conv.to_scale(style[index : index + 1])[0][:, None, None]
        if demodulate:
            weights = weights / (weights.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(features[index : index + 1], weights, padding=1)
        torch.testing.assert_close(found[index : index + 1], expected, rtol=1e-4, atol=1e-5)


def test_layers_start_with_variance_one():
    torch.manual_seed(0)
    conv = ModulatedConv(64, 64, 16, 3)
    out = conv(torch.randn(8, 64, 16, 16), torch.randn(8, 16))
    assert out[..., 2:-2, 2:-2].std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("edge", [8, 32, 64])
def test_style_networks_fit_every_power_of_two(edge, planes):
    network = StyleGenerator(edge, 3, 10, 4, planes)
    assert network.noise_size == planes * (16 + 2 * sum(size**2 for size in (8, 16, 32, 64) if size <= edge))
    images = network(torch.randn(2, 10 + network.noise_size))
    assert images.shape == (2, 3, edge, edge)
    assert StyleDiscriminator(edge, 3, 4)(images).shape == (2,)


def test_a_fine_block_sees_detail_with_both_convolutions():
    """Noise whose mean over each 2 × 2 pixels is 0: where the first convolution passes it on, only the second one of a
    fine block is left to see it."""
    torch.manual_seed(0)
    noise = torch.randn(1, 3, 16, 16)
    noise = noise - F.interpolate(F.avg_pool2d(noise, 2), scale_factor=2)
    for fine in (False, True):
        block = DownBlock(3, 5, fine)
        with torch.no_grad():
            block.conv_1.weight.zero_()[range(3), range(3), 1, 1] = 27**0.5  # the identity, and activate() is linear up
            block.conv_1.bias.fill_(100.0)
            flat = block(torch.zeros_like(noise))
            change = (block(noise) - flat).abs().mean().item()
        assert (change > 0.1) == fine, f"fine {fine}: {change}"


@pytest.mark.parametrize("edge", [4, 24, 48])
def test_other_sizes_are_refused(edge):
    with pytest.raises(ValueError, match=f"image_size {edge}: must be 8, 16, 32"):
        StyleGenerator(edge, 1, 10, 4)


def test_a_style_for_each_layer_may_be_the_same_for_all():
    torch.manual_seed(0)
    network = StyleGenerator(16, 1, 6, 4)
    styles, noise = network.find_styles(torch.randn(2, 6)), torch.randn(2, network.noise_size)
    each = styles[:, None].expand(-1, network.num_styles, -1)
    assert torch.equal(network.synthesize(styles, noise), network.synthesize(each, noise))
    moved = each.clone()
    moved[:, -1] += 1  # the style of the finest image alone
    assert not torch.equal(network.synthesize(moved, noise), network.synthesize(each, noise))


@pytest.mark.parametrize("planes", [1, 3])
def test_noise_changes_the_texture_once_it_has_strength(planes):
    torch.manual_seed(0)
    network = StyleGenerator(16, 1, 6, 4, planes)
    styles, noise = network.find_styles(torch.randn(1, 6)), torch.randn(2, network.noise_size)
    first, second = network.synthesize(styles.expand(2, -1), noise)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    for layer in network.layers:
        torch.nn.init.ones_(layer.noise_strength)
    first, second = network.synthesize(styles.expand(2, -1), noise)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("size", [(32, 32), (40, 65)])
def test_masked_images_have_the_size_of_their_mask_and_follow_it(size):
    torch.manual_seed(0)
    network = SpadeGenerator(32, 1, 3, 6, 4, 8)
    mask = F.one_hot(torch.randint(3, (1, *size)), 3).permute(0, 3, 1, 2).float()
    vectors = torch.randn(1, 6 + network.count_noise(*size))
    images = network(vectors, mask)
    assert images.shape == (1, 1, *size)
    turned = network(vectors, mask.roll(1, dims=1))
    assert (images - turned).abs().mean() > 1e-3
    logits = SegmentingDiscriminator(32, 1, 3, 4)(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 4, 32, 32)


def build_style(size, planes, channels=8):
    """A style-based network and what draws for its vectors."""
    network = StyleGenerator(size, 1, 2, channels, planes)
    return network, network.noise_size, network


def build_masked(size, planes, channels=8):
    """A masked network and what draws for its vectors, with a mask of one class."""
    network = SpadeGenerator(size, 1, 1, 2, channels, 4, planes)
    mask = torch.ones(1, 1, size, size)
    return (
        network,
        network.count_noise(size, size),
        lambda vectors: network(vectors, mask.expand(len(vectors), -1, -1, -1)),
    )


def measure_ripple(build, planes):
    """How unlike the mean spectrum of images is on its two diagonals: 0 for texture without a direction.

    Mean absolute difference of log power, over 8 untrained networks with noise in all layers.
    """
    differences = []
    for seed in range(8):
        torch.manual_seed(seed)
        network, noise, draw = build(32, planes, 16)
        for name, parameter in network.named_parameters():
            if "noise" in name:
                torch.nn.init.ones_(parameter)
        vectors = torch.cat([torch.zeros(256, 2), torch.randn(256, noise)], dim=1)
        with torch.no_grad():
            images = draw(vectors)
        power = torch.fft.fft2(images - images.mean(dim=0)).abs().square().mean(dim=0)[0]
        falling, rising = power[1:16, 1:16], power[1:16, 17:].flip(1)
        differences.append((falling / rising).log().abs().mean())
    return torch.stack(differences).mean().item()


@pytest.mark.parametrize("build", [build_style, build_masked])
def test_several_planes_of_noise_have_no_direction(build):
    assert measure_ripple(build, 8) < 0.7 * measure_ripple(build, 1)


@pytest.mark.parametrize("build", [build_style, build_masked])
@pytest.mark.parametrize("planes", [3, 8])
def test_planes_are_dealt_out_to_channels_in_turn(build, planes):
    """A network with as many planes as channels, of which every planes-th is the same, draws the same."""
    torch.manual_seed(0)
    (few, noise, draw_few), (many, _, draw_many) = (build(16, count) for count in (planes, 32))
    for name, parameter in few.named_parameters():
        if "noise" in name:
            torch.nn.init.normal_(parameter)
    many.load_state_dict(few.state_dict())
    vectors = torch.randn(2, 2 + noise)
    edges = (4, 8, 8, 16, 16) if build is build_style else (4, 4, 8, 8, 16, 16)
    fields = vectors[:, 2:].split([planes * edge**2 for edge in edges], dim=1)
    dealt = [field.unflatten(1, (planes, -1))[:, torch.arange(32) % planes].flatten(1) for field in fields]
    torch.testing.assert_close(draw_many(torch.cat([vectors[:, :2], *dealt], dim=1)), draw_few(vectors))
    assert not torch.allclose(draw_few(vectors), draw_few(torch.cat([vectors[:, :2], vectors[:, 2:].flip(0)], dim=1)))


@pytest.mark.parametrize("planes", [1, 3])
def test_a_layer_of_style_against_its_formula(planes):
    """Noise of plane c mod planes, times the strength of channel c, or of the layer with one plane as in the paper."""
    torch.manual_seed(0)
    layer = StyleGenerator(8, 1, 6, 4, planes).layers[2]
    torch.nn.init.normal_(layer.noise_strength)
    features, style, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 6), torch.randn(2, planes, 8, 8)
    strengths = layer.noise_strength.flatten().expand(4)
    added = torch.stack([strengths[channel] * noise[:, channel % planes] for channel in range(4)], dim=1)
    expected = F.leaky_relu(layer.conv(features, style) + added, 0.2) * 2**0.5
    torch.testing.assert_close(layer(features, style, noise), expected)
    assert layer.noise_strength.numel() == (1 if planes == 1 else 4)


def test_realness_is_the_log_odds_of_not_being_generated():
    logits = torch.randn(2, 4, 3, 3)
    generated = logits.softmax(dim=1)[:, -1]
    expected = ((1 - generated) / generated).log()
    torch.testing.assert_close(compute_log_odds(logits), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [StyleDiscriminator(16, 1, 4), SegmentingDiscriminator(16, 1, 2, 4)])
def test_full_precision_is_so_under_autocast(network):
    images = torch.randn(2, 1, 16, 16)
    plain = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images, full_precision=True), plain)
        assert not torch.equal(network(images).float(), plain)

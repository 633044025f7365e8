"""The network: its structure, cached mask features, checkpointing, and saving."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from steelgen.models.blocks import PatchSplit, resample
from steelgen.models.semantic_unet import SemanticUNet


def build_network(**options):
    torch.manual_seed(0)
    settings = dict(
        image_size=16,
        num_classes=3,
        base_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=4,
        spade_channels=8,
        norm_groups=4,
    )
    network = SemanticUNet(**{**settings, **options})
    for parameter in network.parameters():  # residual branches start at zero; here every path must count
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def draw_inputs(n=2, size=16, channels=1, num_classes=3):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(n, channels, size, size, generator=generator)
    mask = torch.randint(num_classes, (n, size, size), generator=generator)
    one_hot = torch.nn.functional.one_hot(mask, num_classes).permute(0, 3, 1, 2).float()
    return image, torch.arange(n) * 100 + 7, one_hot


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("resample_in_blocks", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_every_variant_depends_on_its_own_image_mask_and_time(channels, learn_sigma, resample_in_blocks, scale_shift):
    """And on nothing else of the batch."""
    network = build_network(
        in_channels=channels,
        learn_sigma=learn_sigma,
        resample_in_blocks=resample_in_blocks,
        scale_shift=scale_shift,
    )
    inputs = draw_inputs(channels=channels)
    both = network(*inputs)
    assert both.shape == (2, channels * (1 + learn_sigma), 16, 16)
    alone = network(*(each[:1] for each in inputs))
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)
    for index, each in enumerate(inputs):
        changed = [value[:1] if place != index else each[1:] for place, value in enumerate(inputs)]
        assert (network(*changed) - alone).abs().max() > 1e-3


@pytest.mark.parametrize(("resample_in_blocks", "patch_size"), [(False, 1), (True, 1), (True, 2)])
def test_cached_mask_features_change_nothing(resample_in_blocks, patch_size):
    network = build_network(
        resample_in_blocks=resample_in_blocks, channel_mult=(1, 2, 2), patch_size=patch_size, attention_resolutions=()
    )
    image, timesteps, mask = draw_inputs()
    features = network.compute_mask_features(mask)
    assert torch.equal(network(image, timesteps, mask_features=features), network(image, timesteps, mask))


def split_patches(planes):
    """(N, C, 2h, 2w) → (N, 4·C, h, w)."""
    parts = [planes[:, :, down::2, across::2] for down in (0, 1) for across in (0, 1)]
    return torch.stack(parts, dim=2).flatten(1, 2)


def test_the_levels_of_a_network_of_patches_are_those_of_one_of_half_the_edge():
    patched = build_network(coarse_channels=1, patch_size=2)
    plain = build_network(coarse_channels=4, in_channels=4, image_size=8)
    weights = patched.state_dict()
    plain.load_state_dict(
        {name: weights.get(name) for name in plain.state_dict() if "conv_out" not in name}, strict=False
    )
    (image, timesteps, mask), (coarse, _, _) = draw_inputs(), draw_inputs(n=3)
    coarse, noise, features = coarse[1:], torch.tensor([0.1, 0.2]), []
    for network in (patched, plain):
        network.norm_out.register_forward_hook(lambda module, inputs, output: features.append(output))
    patched(image, timesteps, mask, coarse=coarse, coarse_noise=noise)
    shares = torch.nn.functional.avg_pool2d(mask, 2)
    plain(split_patches(image), timesteps, shares, coarse=split_patches(coarse), coarse_noise=noise)
    assert features[0].std() > 0.1
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=1e-5)


def test_patches_are_split_into_pixels_with_the_input_and_the_mask_beside():
    torch.manual_seed(0)
    split = PatchSplit(6, 3, 2, 2, mask_channels=3, spade_channels=4)
    features, pixels = torch.randn(2, 6, 4, 5), torch.randn(2, 2, 8, 10)
    gamma, beta = torch.randn(2, 3, 8, 10), torch.randn(2, 3, 8, 10)
    parts, beside = split.expand(features), split.skip(pixels)
    joined = torch.zeros(2, 3, 8, 10)
    for channel in range(3):
        for down in (0, 1):
            for across in (0, 1):
                joined[:, channel, down::2, across::2] = parts[:, 4 * channel + 2 * down + across]
    expected = torch.nn.functional.layer_norm(joined + beside, joined.shape[1:]) * (1 + gamma) + beta
    torch.testing.assert_close(split(features, pixels, [(gamma, beta)]), expected)


def test_a_network_of_patches_sees_each_pixel_of_the_mask():
    """And shares the null mask of guidance among the images of a batch."""
    network = build_network(patch_size=2)
    image, timesteps, _ = draw_inputs()
    stripes = torch.zeros(2, 3, 16, 16)
    stripes[0, 0, :, ::2] = stripes[0, 1, :, 1::2] = 1
    stripes[1] = stripes[0].flip(2)  # the same shares of each patch
    image[1] = image[0]
    first, second = network(image, timesteps[:1].expand(2), stripes)
    assert (first - second).abs().max() > 0.01
    masks = torch.cat([stripes, torch.zeros(1, 3, 16, 16)])
    both = network(torch.cat([image, image]), timesteps.repeat(2), mask_features=network.compute_mask_features(masks))
    conditional, null = both.chunk(2)
    torch.testing.assert_close(conditional, network(image, timesteps, stripes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(null, network(image, timesteps, torch.zeros(2, 3, 16, 16)), atol=1e-5, rtol=1e-5)


def test_mask_and_timestep_matter_and_images_do_not_mix():
    network = build_network()
    image, timesteps, mask = draw_inputs()
    out = network(image, timesteps, mask)
    assert not torch.allclose(out, network(image, timesteps + 1, mask))
    changed = mask.clone()
    changed[1] = changed[1].flip(0)
    again = network(image, timesteps, changed)
    assert torch.allclose(out[0], again[0], atol=1e-6)
    assert not torch.allclose(out[1], again[1], atol=1e-4)


def test_encoder_does_not_see_the_mask():
    """Plain blocks in the encoder, SPADE blocks in the middle and the decoder."""
    names = [name for name, _ in build_network().named_parameters() if "to_modulation" in name]
    assert names
    assert all(name.startswith(("middle.", "decoder.")) for name in names)


def test_untrained_network_predicts_zero():
    torch.manual_seed(0)
    network = SemanticUNet(
        image_size=16,
        base_channels=8,
        channel_mult=(1, 2),
        norm_groups=4,
        num_head_channels=4,
        attention_resolutions=(8,),
    )
    image, timesteps, mask = draw_inputs(num_classes=2)
    assert network(image, timesteps, mask).abs().max() == 0


def test_gradient_checkpointing_gives_the_same_gradients():
    image, timesteps, mask = draw_inputs()
    gradients = []
    for checkpointing in (False, True):
        network = build_network()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.train()
        network(image, timesteps, mask).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_save_and_load_as_safetensors(tmp_path):
    network = build_network()
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = SemanticUNet.from_pretrained(tmp_path).eval()
    image, timesteps, mask = draw_inputs()
    assert torch.equal(loaded(image, timesteps, mask), network(image, timesteps, mask))


def test_attention_equals_torchs_own():
    from steelgen.models.blocks import SelfAttention

    torch.manual_seed(0)
    ours = SelfAttention(8, num_heads=2, num_groups=4)
    torch.nn.init.normal_(ours.to_out.weight)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = (
        ours.to_qkv.weight.data,
        ours.to_qkv.bias.data,
    )
    reference.out_proj.weight.data, reference.out_proj.bias.data = (
        ours.to_out.weight.data,
        ours.to_out.bias.data,
    )
    features = torch.randn(2, 8, 3, 5)
    tokens = ours.norm(features).flatten(2).transpose(1, 2)
    expected = features + reference(tokens, tokens, tokens)[0].transpose(1, 2).reshape(features.shape)
    torch.testing.assert_close(ours(features), expected)


def test_size_that_does_not_halve_is_refused():
    network = build_network()
    image, timesteps, mask = draw_inputs(size=15)
    with pytest.raises(ValueError, match="multiple of 2"):
        network(image, timesteps, mask)


def test_norms_compute_in_the_type_of_their_features():
    """CUDA's autocast would run them in fp32, as it does softmax here; their weights stay fp32."""
    network = build_network()
    image, timesteps, mask = draw_inputs()
    types = []
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda module, inputs, output: types.append((inputs[0].dtype, output.dtype)))
    exact = network(image, timesteps, mask)
    assert set(types) == {(torch.float32, torch.float32)}
    types.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image, timesteps, mask)
    assert set(types) == {(torch.bfloat16, torch.bfloat16)}
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("options", [{}, {"instance_edges": True}, {"patch_size": 2}])
def test_checkpointing_keeps_no_modulations(options):
    """γ and β, as large as the features, are not among what the backward pass keeps; the gradients are the same."""
    image, timesteps, mask = draw_inputs()
    kept, gradients = [], []
    for checkpoints in (False, True):
        network = build_network(**options).train()
        if checkpoints:
            network.enable_gradient_checkpointing()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            network(image, timesteps, mask).square().sum().backward()
        # Checkpointed stages save through hooks of their own: what is counted here lives until the backward pass.
        kept.append(sum(sizes))
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert kept[1] < 0.3 * kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_doubling_is_the_same_without_scattered_additions(layout):
    operators = set()

    def list_operators(graph, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    double = torch.compile(resample, backend=aot_autograd(fw_compiler=list_operators, bw_compiler=list_operators))
    features = torch.randn(2, 8, 5, 6).to(memory_format=layout)
    eager, compiled = (features.clone().requires_grad_() for _ in range(2))
    expected, found = resample(eager, "up"), double(compiled, "up")
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(compiled.grad, eager.grad)
    assert not [name for name in operators if "index" in name]

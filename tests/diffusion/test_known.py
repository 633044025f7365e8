"""Inpainting, and images of known mean gray level, with a network that knows its data."""

from types import SimpleNamespace

import pytest
import torch

from steelgen.diffusion.known import KnownMean, KnownPixels, find_whole_latents
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from tests.diffusion.calls import draw
from tests.diffusion.gaussian import LEVELS, GaussianNetwork

COUNT, HALF = 64, 4


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize(
    ("solver", "error"),
    [("dpmsolver++", 0.32), ("unipc", 0.32), ("heun", 0.32), ("ddpm", 0.2), ("sde-dpmsolver++", 0.2)],
)
def test_known_pixels_stay_and_the_others_fit_them(prediction_type, solver, error):
    """Images vary in brightness by 1 as a whole: the brightness of a known half is that of the other half, up to
    0.3/√32. Independent samples would differ by 1 on average, and by 0.8 from the mean of all."""
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", prediction_type, prediction_type != "epsilon")
    described = SimpleNamespace(
        alphas_cumprod=schedule.alphas_cumprod, config=SimpleNamespace(prediction_type=prediction_type)
    )
    network = GaussianNetwork(described, deviation=0.3, brightness=1.0)
    generator = torch.Generator().manual_seed(1)
    brightness = torch.linspace(-1.5, 1.5, COUNT)[:, None, None, None]
    values = LEVELS[0] + brightness + 0.3 * torch.randn(COUNT, 1, 8, 8, generator=generator)
    known = torch.zeros(COUNT, 1, 8, 8, dtype=torch.bool)
    known[..., :HALF] = True
    masks = torch.zeros(COUNT, 8, 8, dtype=torch.long)
    images = draw(
        SemanticSampler(network, schedule),
        masks,
        range(COUNT),
        solver,
        40,
        batch=True,
        guidance_scale=1.0,
        known=KnownPixels(known, values),
    )
    torch.testing.assert_close(images[known], values[known], atol=1e-4, rtol=0)
    inside = images[..., HALF:].mean(dim=(1, 2, 3)) - LEVELS[0]
    assert (inside - brightness.flatten()).abs().mean() < error
    assert images[..., HALF:].std(dim=(1, 2, 3)).mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("sigma", [0.02, 1.0, 30.0])
def test_the_estimate_of_a_flow_is_replaced(sigma):
    """x_t = (1 − t)·x₀ + t·ε and u = ε − x₀, so x₀ = x_t − t·u (Lipman et al. 2022)."""
    noisy, values = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    known = torch.rand(2, 1, 3, 3) < 0.5
    output = torch.randn(2, 1, 3, 3)
    time = sigma / (1 + sigma)
    corrected = KnownPixels(known, values).correct(output, noisy, sigma, "flow")
    assert torch.equal(corrected[~known], output[~known])
    torch.testing.assert_close((noisy - time * corrected)[known], values[known], atol=1e-5, rtol=1e-5)


def test_a_learned_variance_is_left_alone():
    output = torch.randn(1, 2, 3, 3)
    kept = KnownPixels(torch.ones(1, 1, 3, 3, dtype=torch.bool), torch.zeros(1, 1, 3, 3))
    assert torch.equal(kept.correct(output, torch.zeros(1, 1, 3, 3), 1.0, "epsilon")[:, 1:], output[:, 1:])


def test_latents_are_known_if_all_of_their_pixels_are():
    known = torch.ones(1, 5, 4, dtype=torch.bool)
    known[0, 2, 1] = False
    assert find_whole_latents(known, 2).tolist() == [[[True, True], [False, True], [True, True]]]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "heun", "ddim", "ddpm", "sde-dpmsolver++"])
def test_images_have_the_known_mean_and_the_rest_from_the_network(prediction_type, solver):
    """The network believes that all images are of the level of their class; deviations within them are its own."""
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", prediction_type, prediction_type != "epsilon")
    described = SimpleNamespace(
        alphas_cumprod=schedule.alphas_cumprod, config=SimpleNamespace(prediction_type=prediction_type)
    )
    sampler = SemanticSampler(GaussianNetwork(described, deviation=0.3), schedule)
    levels = torch.linspace(-1.5, 1.5, COUNT)
    levels[3] = torch.nan
    masks = torch.zeros(COUNT, 8, 8, dtype=torch.long)
    options = {"batch": True, "guidance_scale": 1.0}
    plain = draw(sampler, masks, range(COUNT), solver, 20, **options)
    images = draw(sampler, masks, range(COUNT), solver, 20, known=KnownMean(levels), **options)
    known = ~levels.isnan()
    torch.testing.assert_close(images[known].mean(dim=(1, 2, 3)), levels[known], atol=1e-4, rtol=0)
    torch.testing.assert_close(images[3], plain[3])
    within, own = (each - each.mean(dim=(1, 2, 3), keepdim=True) for each in (images, plain))
    torch.testing.assert_close(within, own, atol=0.02, rtol=0)


@pytest.mark.parametrize("sigma", [0.02, 1.0, 30.0])
def test_the_mean_estimate_of_a_flow_is_replaced(sigma):
    """u = ε − x₀ with x_t = (1 − t)·x₀ + t·ε; a learned variance is left alone."""
    noisy, output, levels = torch.randn(2, 1, 3, 3), torch.randn(2, 2, 3, 3), torch.tensor([0.3, -2.0])
    time = sigma / (1 + sigma)
    corrected = KnownMean(levels).correct(output, noisy, sigma, "flow")
    before, after = (noisy - time * each[:, :1] for each in (output, corrected))
    torch.testing.assert_close(after.mean(dim=(1, 2, 3)), levels, atol=1e-5, rtol=1e-5)
    shift = after - before
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), atol=1e-5, rtol=1e-5)
    assert torch.equal(corrected[:, 1:], output[:, 1:])

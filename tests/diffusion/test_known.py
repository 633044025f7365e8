"""Inpainting with a network that knows its data."""

from types import SimpleNamespace

import pytest
import torch

from steelgen.diffusion.known import KnownPixels, find_whole_latents
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

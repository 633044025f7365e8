"""Pieces of the training recipe against the papers' own formulas: EDM's noise levels, flow matching."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from steelgen.config.solver import SolverSection
from steelgen.diffusion.noise import build_noise_schedule, flow_to_original, flow_to_velocity, scale_to_flow
from steelgen.diffusion.randomness import sample_fractions
from steelgen.diffusion.solvers import DiffusersSolver
from steelgen.diffusion.timesteps import LogNormalTimesteps
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from tests.diffusion.calls import compute_loss, draw
from tests.models.test_semantic_unet import build_network

SOLVERS = ["dpmsolver++", "unipc", "ddim", "euler", "heun"]


def test_our_loss_is_edms():
    """Karras et al. 2022, eq. 8 with table 1's c_skip, c_out, c_in, λ at σ_data = 1, for a network F and ours, −F."""
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True)

    class Network(nn.Module):
        def forward(self, noisy_image, timesteps, one_hot_mask):
            self.timesteps, self.seen = timesteps, noisy_image
            return torch.tanh(1.7 * noisy_image + 0.3)

    numbers, network = torch.arange(64), Network()
    image = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = {"image": image.float(), "mask": torch.zeros(64, 8, 8, dtype=torch.long), "number": numbers}
    ours, _ = compute_loss(network, schedule, batch, distribution=LogNormalTimesteps(schedule, -0.5, 1.2))

    alpha = schedule.alphas_cumprod.double()[network.timesteps].view(-1, 1, 1, 1)
    sigma = ((1 - alpha) / alpha).sqrt()
    noisy = network.seen.double() / alpha.sqrt()  # y + n
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()
    denoised = c_skip * noisy - c_out * torch.tanh(1.7 * c_in * noisy + 0.3)
    weight = (sigma**2 + 1) / sigma**2
    theirs = (weight * (denoised - image) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(-0.5, 1.2), (0.0, 1.0)])
def test_noise_levels_are_lognormal(mean, std):
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True)
    fractions = sample_fractions(torch.arange(20_000), seed=3)
    timesteps, weights = LogNormalTimesteps(schedule, mean, std).draw(fractions)
    assert weights is None
    log_sigmas = 0.5 * (1 / schedule.alphas_cumprod[timesteps].double() - 1).log()
    # Quantized to the schedule's own levels, up to 0.4 apart at its start.
    distance = scipy.stats.kstest(log_sigmas.numpy(), scipy.stats.norm(mean, std).cdf).statistic
    assert distance < 0.005
    times = 1 / (1 + torch.exp(-log_sigmas))  # of rectified flow: t = σ/(1 + σ)
    logit_normal = scipy.stats.norm(mean, std).cdf(np.log([0.25 / 0.75, 1.0, 3.0]))
    shares = [(times < limit).double().mean().item() for limit in (0.25, 0.5, 0.75)]
    np.testing.assert_allclose(shares, logit_normal, atol=0.005)


def test_flow_schedule_has_the_snr_of_straight_paths():
    schedule = build_noise_schedule(1000, "flow", "flow", True)
    time = torch.arange(1, 1001, dtype=torch.float64) / 1000
    kept = torch.arange(999)
    alphas = schedule.alphas_cumprod[kept]
    torch.testing.assert_close(alphas / (1 - alphas), ((1 - time[kept]) / time[kept]) ** 2, rtol=1e-6, atol=0)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.interpolate_levels(499.0) == pytest.approx((0.5**0.5, 0.5**0.5), abs=1e-12)
    signal, spread = schedule.interpolate_levels(249.5)
    assert signal**2 + spread**2 == pytest.approx(1)
    assert schedule.alphas_cumprod[250] < signal**2 < schedule.alphas_cumprod[249]


@pytest.mark.parametrize("beta_schedule", ["flow", "linear"])
def test_flow_conversions_are_identities(beta_schedule):
    schedule = build_noise_schedule(1000, beta_schedule, "flow", True)
    image, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = schedule.alphas_cumprod.double()[torch.tensor([3, 500, 990])].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * image + (1 - alpha).sqrt() * noise
    levels, sigma = (alpha.sqrt(), (1 - alpha).sqrt()), ((1 - alpha) / alpha).sqrt()
    time = sigma / (1 + sigma)
    torch.testing.assert_close(scale_to_flow(noisy, *levels), (1 - time) * image + time * noise)
    torch.testing.assert_close(flow_to_original(noisy, noise - image, *levels), image)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * image
    torch.testing.assert_close(flow_to_velocity(noisy, noise - image, *levels), velocity)


class GaussianFlow(nn.Module):
    """E[ε − x₀ | z_t] for x₀ ~ N(mean, deviation²), in closed form."""

    def __init__(self, mean, deviation, num_train_timesteps):
        super().__init__()
        self.mean, self.deviation, self.steps = mean, deviation, num_train_timesteps

    def forward(self, noisy, timestep, *_):
        time = (timestep.double() + 1).view(-1, 1, 1, 1) / self.steps
        variance = (1 - time) ** 2 * self.deviation**2 + time**2
        offset = noisy - (1 - time) * self.mean
        noise = time / variance * offset
        image = self.mean + (1 - time) * self.deviation**2 / variance * offset
        return (noise - image).to(noisy)


def test_loss_of_the_exact_flow_is_its_posterior_variance():
    """E|u − E[u|z]|² = s²/((1−t)²s² + t²) for x₀ of deviation s; the network must be fed z_t and asked for ε − x₀."""
    schedule = build_noise_schedule(1000, "flow", "flow", True)
    image = 0.7 + 0.5 * torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = {"image": image, "mask": torch.zeros(400, 16, 16, dtype=torch.long), "number": torch.arange(400)}
    losses, _ = compute_loss(GaussianFlow(0.7, 0.5, 1000), schedule, batch)
    time = torch.arange(1, 1001) / 1000
    expected = (0.25 / ((1 - time) ** 2 * 0.25 + time**2)).mean()
    assert losses.mean().item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize(
    ("solver", "tolerance"), [("dpmsolver++", 0.02), ("unipc", 0.02), ("heun", 0.02), ("ddim", 0.08), ("euler", 0.08)]
)
def test_solvers_follow_the_exact_flow_of_a_gaussian(solver, tolerance, monkeypatch):
    """The probability-flow ODE takes noise ε to mean + deviation·ε exactly; the whole sampler must come close."""
    schedule = build_noise_schedule(1000, "flow", "flow", True)
    sampler = SemanticSampler(build_network(), schedule)
    exact = GaussianFlow(0.7, 0.5, 1000)
    monkeypatch.setattr(sampler.unet, "forward", lambda image, timesteps, mask_features: exact(image, timesteps))
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 16, 16, dtype=torch.long)
    images = draw(sampler, masks, [0, 1], solver, 100, guidance_scale=1.0, noise=noise)
    torch.testing.assert_close(images, 0.7 + 0.5 * noise, atol=tolerance, rtol=0)


def test_solvers_are_told_velocity():
    schedule = build_noise_schedule(100, "flow", "flow", True)
    for name in [*SOLVERS, "ddpm"]:
        section = SolverSection(name=name, num_inference_steps=10)
        assert DiffusersSolver(section, schedule).scheduler.config.prediction_type == "v_prediction"

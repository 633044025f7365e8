"""The variational bound against numpy and scipy, and what of it reaches which output of the network."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from steelgen.devices import randn_by_seed
from steelgen.diffusion.loss import LossOptions, compute_discrete_log_likelihood, compute_variational_bound
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.diffusion.randomness import crop_seed, sample_fractions
from steelgen.diffusion.reverse import build_reverse_process
from steelgen.diffusion.timesteps import EvenTimesteps
from tests.diffusion.calls import compute_loss


def test_bound_of_later_steps_is_the_divergence_of_two_gaussians():
    total = 50
    process = build_reverse_process(build_noise_schedule(total, "linear", "epsilon", False).betas)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (3, 2, 4, 4))
    noisy, prediction = rng.normal(size=(2, 3, 2, 4, 4))
    share = rng.uniform(-1, 1, (3, 2, 4, 4))
    steps = [1, 20, 49]
    bound = compute_variational_bound(
        process, torch.tensor(steps), *(torch.tensor(value) for value in (image, noisy, prediction, share)), "epsilon"
    )

    bar = np.cumprod(1 - np.linspace(1e-4 * 20, 0.02 * 20, total))
    for index, t in enumerate(steps):
        between = bar[t] / bar[t - 1]
        variance = 1 / (1 / (1 - bar[t - 1]) + between / (1 - between))  # Bayes' rule

        def mean(x_0, index=index, t=t, between=between, variance=variance):
            return variance * (
                math.sqrt(bar[t - 1]) / (1 - bar[t - 1]) * x_0 + math.sqrt(between) / (1 - between) * noisy[index]
            )

        guess = (noisy[index] - math.sqrt(1 - bar[t]) * prediction[index]) / math.sqrt(bar[t])
        v = (share[index] + 1) / 2
        own = np.exp(v * math.log(1 - between) + (1 - v) * math.log(variance))
        difference = mean(image[index]) - mean(guess)
        wanted = 0.5 * (np.log(own / variance) - 1 + variance / own + difference**2 / own)
        assert bound[index].item() == pytest.approx(wanted.mean() / math.log(2), rel=1e-9)


def test_likelihood_of_the_first_step_is_a_mass_of_bins():
    levels = torch.arange(256).double().reshape(1, 1, 16, 16) / 127.5 - 1
    mean, deviation = 0.3 * torch.ones_like(levels), 0.4
    log_mass = compute_discrete_log_likelihood(levels, mean, torch.full_like(levels, math.log(deviation)), (-1, 1))
    edges = np.concatenate([[-np.inf], np.arange(255) / 127.5 - 1 + 1 / 255, [np.inf]])
    assert log_mass.exp().flatten().numpy() == pytest.approx(np.diff(norm.cdf(edges, 0.3, deviation)), abs=1e-9)
    assert log_mass.exp().sum().item() == pytest.approx(1)


class Constant(nn.Module):
    """A network that gives the same for every image."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.output = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, noisy_image, timesteps, one_hot_mask):
        return self.output.expand(len(noisy_image), -1, -1, -1)


def sample_batch(n=6):
    generator = torch.Generator().manual_seed(2)
    return {
        "image": torch.rand(n, 2, 4, 4, generator=generator) * 2 - 1,
        "mask": torch.zeros(n, 4, 4, dtype=torch.int64),
        "number": torch.arange(n),
    }


@pytest.mark.parametrize("learned", [False, True])
def test_the_bound_trains_the_variance_alone(learned):
    schedule = build_noise_schedule(100, "linear", "epsilon", False)
    gradients = []
    for weight in (0.0, 0.5):
        network = Constant(4 if learned else 2)
        losses, _ = compute_loss(network, schedule, sample_batch(), LossOptions(vlb_weight=weight))
        assert losses.shape == (6,)
        losses.sum().backward()
        gradients.append(network.output.grad)
    assert torch.equal(gradients[0][:, :2], gradients[1][:, :2])
    if learned:
        assert (gradients[0][:, 2:] == 0).all()
        assert (gradients[1][:, 2:] != 0).all()


def test_hybrid_loss_is_the_error_plus_the_weighted_bound():
    schedule = build_noise_schedule(100, "linear", "epsilon", False)
    network, batch = Constant(4), sample_batch()
    plain, hybrid, bound = (
        compute_loss(network, schedule, batch, options)[0]
        for options in (LossOptions(vlb_weight=0), LossOptions(vlb_weight=0.25), LossOptions(objective="variational"))
    )
    assert hybrid.tolist() == pytest.approx((plain + 0.25 * bound).tolist(), rel=1e-5)


def test_gradient_of_the_bound_is_that_of_the_rescaled_kl():
    """T·KL of two Gaussians of variance β: ∂/∂ε = T·β / (α(1−ᾱ)) · (ε_θ − ε), per value and in bits."""
    total = 100
    schedule = build_noise_schedule(total, "linear", "epsilon", False)
    network, batch = Constant(2), sample_batch()
    losses, _ = compute_loss(network, schedule, batch, LossOptions(objective="variational"))
    losses.sum().backward()
    steps, _ = EvenTimesteps(total).draw(sample_fractions(batch["number"], 0))
    assert (steps > 0).all()  # the first step's loss is a likelihood
    noise = randn_by_seed(batch["image"].shape[1:], [crop_seed(number, 0) for number in range(6)])
    betas = torch.linspace(1e-4 * 10, 0.02 * 10, total, dtype=torch.float64)
    factor = total * betas / ((1 - betas) * (1 - torch.cumprod(1 - betas, 0)))
    slopes = factor[steps][:, None, None, None] * (network.output.detach() - noise) / noise[0].numel() / math.log(2)
    assert network.output.grad.numpy() == pytest.approx(slopes.sum(0, keepdim=True).numpy(), rel=1e-4)

"""The variational bound, by which a reverse variance is learned (Nichol & Dhariwal 2021, arXiv 2102.09672)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steelgen.diffusion.reverse import ReverseProcess, compute_reverse_step


def compute_variational_bound(
    process: ReverseProcess,
    timesteps: Tensor,
    image: Tensor,
    noisy_image: Tensor,
    prediction: Tensor,
    variance_output: Tensor | None,
    prediction_type: str,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """L_t of each image in bits per value: KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)), for the first step −log p(x_0|x_1).

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 5 and section 3.3.

    Args:
        timesteps: (N,) int64, steps of `process`.
        image: x_0, (N, C, H, W).
        noisy_image: x_t.
        prediction, variance_output, prediction_type: see `compute_reverse_step`.
        value_range: what gray levels 0 and 255 are in `image`; between them lie 255 equal bins.

    Returns:
        (N,) float32.
    """
    model = compute_reverse_step(process, timesteps, noisy_image, prediction, variance_output, prediction_type)
    # The true posterior is the step of a network that knows the image and has the smallest variance.
    true = compute_reverse_step(process, timesteps, noisy_image, image, None, "sample", "fixed_small")
    divergence = 0.5 * (
        model.log_variance
        - true.log_variance
        - 1
        + (true.log_variance - model.log_variance).exp()
        + (true.mean - model.mean).square() * (-model.log_variance).exp()
    )
    likelihood = compute_discrete_log_likelihood(image, model.mean, 0.5 * model.log_variance, value_range)
    first = (timesteps == 0)[:, None, None, None]
    return torch.where(first, -likelihood, divergence).mean(dim=(1, 2, 3)) / math.log(2)


def compute_discrete_log_likelihood(
    image: Tensor, mean: Tensor, log_deviation: Tensor, value_range: tuple[float, float]
) -> Tensor:
    """log of a Gaussian's mass in each value's bin of 8 bits, the outer bins open (Ho et al. 2020, eq. 13).

    Args:
        image, mean, log_deviation: (N, C, H, W).

    Returns:
        (N, C, H, W), in nats.
    """
    low, high = value_range
    half_bin = (high - low) / 255 / 2
    inverse = (-log_deviation).exp()
    above = torch.special.ndtr((image - mean + half_bin) * inverse)
    below = torch.special.ndtr((image - mean - half_bin) * inverse)
    above = torch.where(image > high - half_bin, torch.ones_like(above), above)
    below = torch.where(image < low + half_bin, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()

"""Projection of images to the latent space w."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from steelgen.models.style_gan import StyleGenerator

_LEARNING_RATE = 0.05
_COARSEST = 4
"""Edge in pixels of the coarsest pyramid level."""


def find_nearest_styles(
    network: StyleGenerator, images: Tensor, start: Tensor, steps: int, report: Callable[[int, int], None]
) -> tuple[Tensor, Tensor]:
    """Optimizes one style per layer, with zero noise, to reproduce given images.

    Source: Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189), with squared errors over an image pyramid instead of
    features of a network trained on photographs.

    Args:
        network: in eval mode.
        images: (N, C, S, S), standardized.
        start: (1, latent_dim) initial style.
        steps: Adam steps, with a cosine learning-rate schedule.
        report: receives (steps done, total steps).

    Returns:
        styles: (N, num_styles, latent_dim); rmse: (N,), root mean square error.
    """
    styles = start.clone().expand(len(images), network.num_styles, -1).clone().requires_grad_()
    noise = images.new_zeros(len(images), network.noise_size)
    optimizer = torch.optim.Adam([styles], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            report(step, steps)
            loss = _compute_pyramid_loss(network.synthesize(styles, noise), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report(steps, steps)
        with torch.no_grad():
            errors = (network.synthesize(styles, noise) - images).square().mean(dim=(1, 2, 3)).sqrt()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return styles.detach(), errors


def _compute_pyramid_loss(generated: Tensor, images: Tensor) -> Tensor:
    """Computes the mean squared error at each pyramid level, summed over levels and images."""
    error = generated - images
    loss = error.square().mean(dim=(1, 2, 3)).sum()
    while error.shape[-1] > _COARSEST:
        error = F.avg_pool2d(error, 2)
        loss = loss + error.square().mean(dim=(1, 2, 3)).sum()
    return loss

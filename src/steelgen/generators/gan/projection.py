"""From an image to the styles that draw it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from steelgen.models.style_gan import StyleGenerator

_LEARNING_RATE = 0.05
_COARSEST = 4
"""Edge, in pixels, of the smallest images that are compared."""


def find_nearest_styles(
    network: StyleGenerator, images: Tensor, start: Tensor, steps: int, report: Callable[[int, int], None]
) -> tuple[Tensor, Tensor]:
    """Optimizes a style for each layer, without noise, until the image drawn is like a given one.

    Source: Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189), with squared errors over a pyramid of resolutions in
    place of the features of a network trained on photographs.

    Args:
        network: in eval mode.
        images: (N, C, S, S), as the network sees them.
        start: (1, latent_dim), where all of them begin.
        steps: of Adam, its learning rate falling as a half cosine.
        report: told (steps done, steps in all).

    Returns:
        styles: (N, num_styles, latent_dim); rmse: (N,), root mean squared error.
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
            loss = _compare(network.synthesize(styles, noise), images)
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


def _compare(drawn: Tensor, images: Tensor) -> Tensor:
    """Squared errors, means over the pixels of each resolution, summed over resolutions and images."""
    error = drawn - images
    loss = error.square().mean(dim=(1, 2, 3)).sum()
    while error.shape[-1] > _COARSEST:
        error = F.avg_pool2d(error, 2)
        loss = loss + error.square().mean(dim=(1, 2, 3)).sum()
    return loss

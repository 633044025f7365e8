"""Grid of images over the plane of the first two latents."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.data.crops import tensor_to_image
from steelgen.data.sheets import build_sheet
from steelgen.generators import DrawRequest, LatentGenerator

_TILE = 48
"""Smallest edge of a tile in pixels."""


def draw_manifold(generator: LatentGenerator, across: int) -> NDArray[np.uint8]:
    """Generates images at evenly spaced quantiles of the prior (Kingma & Welling 2014, arXiv 1312.6114, appendix A).

    Args:
        generator: generator to sample.
        across: rows and columns; a single row for one latent.

    Returns:
        A sheet: the first latent increases to the right, the second upward; the others are 0.
    """
    steps = list_manifold_steps(across)
    rows = steps.flip(0) if generator.latent_dim > 1 else torch.zeros(1)
    latents = torch.zeros(len(rows), across, generator.latent_dim)
    if generator.latent_dim > 1:
        latents[..., 1] = rows[:, None]
    latents[..., 0] = steps
    flat = latents.flatten(0, 1)
    drawn = generator.draw(DrawRequest([0] * len(flat), noise=flat)).images
    assert drawn is not None
    images = [tensor_to_image(image) for image in drawn]
    sheet = [images[start : start + across] for start in range(0, len(images), across)]
    return build_sheet(sheet, tile=max(_TILE, generator.geometry.image_size))


def list_manifold_steps(across: int) -> torch.Tensor:
    """Returns the values of a latent on the sheet, (across,): normal quantiles of the midpoints of equal bins."""
    return torch.special.ndtri((torch.arange(across) + 0.5) / across)

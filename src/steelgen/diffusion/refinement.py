"""Coarse images of refining networks: their degradation in training, their enlargement, and agreement with them.

A refining network predicts the detail, the image less its enlarged coarse image (as in Mardani et al. 2023, arXiv
2309.15214), whose low frequencies are known. Conditioning augmentation: Ho et al. 2022, cascaded diffusion models
(arXiv 2106.15282), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steelgen.devices import randn_by_seed
from steelgen.diffusion.randomness import crop_seed

_BLUR_RADIUS = 3
"""Radius of the blur's kernel in standard deviations."""
_AGREEMENT_ROUNDS = 4
"""Back-projections; each leaves less than half of the difference."""


@dataclass(frozen=True)
class DegradationRandomness:
    """Adds the random numbers of a crop's degradation, functions of (seed, n), to its other random tensors."""

    others: Callable[[int], dict[str, Tensor]]
    seed: int
    shape: tuple[int, int, int]
    """(C, H, W) of the coarse image."""
    share: float | None = None
    """Share of the strongest blur and noise; None draws each anew, uniformly."""

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Adds `coarse_noise_image` (C, H, W), and the shares `blur` and `coarse_noise` in [0, 1]."""
        rng = np.random.default_rng((crop_seed(number, self.seed), 5))
        blur, strength = rng.random(2).astype(np.float32) if self.share is None else (self.share, self.share)
        source = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return {
            **self.others(number),
            "coarse_noise_image": torch.randn(self.shape, generator=source),
            "blur": torch.tensor(blur, dtype=torch.float32),
            "coarse_noise": torch.tensor(strength, dtype=torch.float32),
        }


def shrink(images: Tensor, factor: int) -> Tensor:
    """Shrinks images (N, C, H, W) by area average to (N, C, ceil(H / factor), ceil(W / factor)).

    Edges that are no multiple of the factor are repeated.
    """
    height, width = images.shape[2:]
    padding = (0, -width % factor, 0, -height % factor)
    return F.avg_pool2d(F.pad(images, padding, mode="replicate") if any(padding) else images, factor)


def enlarge(coarse: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Enlarges coarse images (N, C, h, w) bicubically; returns the upper left `size` (H, W) of (N, C, H, W)."""
    enlarged = F.interpolate(coarse, scale_factor=float(factor), mode="bicubic", align_corners=False)
    return enlarged[:, :, : size[0], : size[1]]


def blur_each(images: Tensor, deviations: Tensor, max_deviation: float) -> Tensor:
    """Blurs images (N, C, H, W) by Gaussians of different standard deviations (N,) in pixels, at most `max_deviation`.

    Edges are repeated.
    """
    if max_deviation == 0:
        return images
    n, channels, height, width = images.shape
    radius = math.ceil(_BLUR_RADIUS * max_deviation)
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # Far below a pixel all weight lies in the middle; a limit avoids dividing by 0.
    kernels = torch.exp(-0.5 * (places / deviations.clamp(min=0.05)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (N·C, K)
    planes = F.pad(images.reshape(1, n * channels, height, width), (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=n * channels)
    planes = F.conv2d(planes, kernels[:, None, :, None], groups=n * channels)
    return planes.view(n, channels, height, width)


def degrade(
    images: Tensor, factor: int, blur: Tensor, max_blur: float, noise: Tensor, noise_deviation: Tensor
) -> Tensor:
    """Makes the enlarged coarse images of training images (N, C, H, W): shrunken, blurred, with noise.

    Args:
        blur: (N,) standard deviations in coarse pixels, at most `max_blur`.
        noise: (N, C, H / factor, W / factor) standard normal.
        noise_deviation: (N,).
    """
    coarse = blur_each(shrink(images, factor), blur, max_blur)
    return enlarge(coarse + noise_deviation[:, None, None, None] * noise, factor, images.shape[2:])


def draw_coarse_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Draws the noise (N, *shape) on the coarse images of sampling; it is independent of an image's other noise."""
    return randn_by_seed(shape, [int(np.random.default_rng((seed, 5)).integers(2**63)) for seed in seeds])


def agree_with(coarse: Tensor, images: Tensor, factor: int) -> Tensor:
    """Changes images (N, C, H, W) so that, when shrunk, they equal their coarse images (N, C, h, w).

    Iterative back-projection (Irani & Peleg 1991): the enlarged difference is added.
    """
    for _ in range(_AGREEMENT_ROUNDS):
        images = images + enlarge(coarse - shrink(images, factor), factor, images.shape[2:])
    return images

"""Spatially-adaptive normalisation: how a mask steers the features of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]
"""γ and β of one SPADE norm, each (N, channels, h, w)."""


class SpadeNorm(nn.Module):
    """GroupNorm without parameters of its own, then x·(1 + γ(mask)) + β(mask).

    γ and β depend on the mask alone, not on the image or the timestep, so they are computed apart from the
    normalisation (`compute_modulation`) and can be reused over all steps of a sampling run.

    Source: Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization" (arXiv 1903.07291),
    eq. 1, with GroupNorm as in Wang et al. 2022, "Semantic Image Synthesis via Diffusion Models" (arXiv 2207.00050).

    Args:
        channels: channels of the features; divisible by `num_groups`.
        mask_channels: channels of the one-hot mask.
        hidden_channels: width of the convolution that γ and β share.
        num_groups: groups of the GroupNorm.
    """

    def __init__(self, channels: int, mask_channels: int, hidden_channels: int = 128, num_groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, affine=False)
        self.shared = nn.Conv2d(mask_channels, hidden_channels, 3, padding=1)
        self.to_modulation = nn.Conv2d(hidden_channels, 2 * channels, 3, padding=1)

    def compute_modulation(self, mask: Tensor) -> Modulation:
        """γ and β for a mask (N, mask_channels, h, w) at the resolution of the features."""
        gamma, beta = self.to_modulation(F.relu(self.shared(mask))).chunk(2, dim=1)
        return gamma, beta

    def forward(self, features: Tensor, modulation: Modulation) -> Tensor:
        """Normalises features (N, channels, h, w) and modulates them."""
        gamma, beta = modulation
        return torch.addcmul(beta, self.norm(features), 1 + gamma)


def build_mask_pyramid(one_hot_mask: Tensor, sizes: list[tuple[int, int]], mode: str) -> dict[tuple[int, int], Tensor]:
    """Resizes a one-hot mask (N, K, H, W) to each (h, w) of `sizes`.

    Args:
        mode: "nearest" picks one pixel (SPADE, ISDM); "area" gives each class its share of the area, so that films
            thinner than a feature pixel stay visible to the coarse levels.
    """
    full = tuple(one_hot_mask.shape[-2:])
    return {size: one_hot_mask if size == full else F.interpolate(one_hot_mask, size=size, mode=mode) for size in sizes}

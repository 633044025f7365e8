"""Spatially-adaptive normalization: how a mask steers the features of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.models.norm import GroupNorm

Modulation = tuple[Tensor, Tensor]
"""γ and β of one SPADE norm, each (N, channels, h, w)."""


class SpadeNorm(nn.Module):
    """GroupNorm without parameters of its own, then x·(1 + γ(mask)) + β(mask).

    γ and β depend on the mask alone, not on the image or the timestep, so they are computed apart from the
    normalization (`compute_modulation`) and can be reused over all steps of a sampling run.

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
        self.norm = GroupNorm(num_groups, channels, affine=False)
        self.shared = nn.Conv2d(mask_channels, hidden_channels, 3, padding=1)
        self.to_modulation = nn.Conv2d(hidden_channels, 2 * channels, 3, padding=1)

    def compute_modulation(self, mask: Tensor) -> Modulation:
        """γ and β for a mask (N, mask_channels, h, w) at the resolution of the features."""
        gamma, beta = self.to_modulation(F.relu(self.shared(mask))).chunk(2, dim=1)
        return gamma, beta

    def forward(self, features: Tensor, modulation: Modulation) -> Tensor:
        """Normalizes features (N, channels, h, w) and modulates them.

        Where γ and β have fewer rows than the features, their last row serves all the rest: under guidance one null
        mask is shared by the batch.
        """
        gamma, beta = modulation
        normalized = self.norm(features)
        own = len(gamma) - 1
        if len(gamma) == len(features):
            return torch.addcmul(beta, normalized, 1 + gamma)
        parts = ((slice(None, own), slice(None, own)), (slice(own, None), slice(own, None)))
        return torch.cat([torch.addcmul(beta[m], normalized[f], 1 + gamma[m]) for f, m in parts])


def build_mask_pyramid(one_hot_mask: Tensor, sizes: list[tuple[int, int]], mode: str) -> dict[tuple[int, int], Tensor]:
    """Resizes a one-hot mask (N, K, H, W) to each (h, w) of `sizes`.

    Args:
        mode: "nearest" picks one pixel (SPADE, ISDM); "area" gives each class its share of the area, so that films
            thinner than a feature pixel stay visible to the coarse levels.
    """
    full = tuple(one_hot_mask.shape[-2:])
    return {size: one_hot_mask if size == full else F.interpolate(one_hot_mask, size=size, mode=mode) for size in sizes}


def mark_edges(one_hot_mask: Tensor) -> Tensor:
    """1 where a pixel has another class than one of its four neighbors, else 0.

    Source: the instance edges of Wang et al. 2018, "pix2pixHD" (arXiv 1711.11585), section 3.3, taken from classes.

    Args:
        one_hot_mask: (N, K, H, W); all zeros, the null mask, has no edges.

    Returns:
        (N, 1, H, W) of the mask's type.
    """
    edges = torch.zeros_like(one_hot_mask[:, :1])
    across = (one_hot_mask[..., 1:] != one_hot_mask[..., :-1]).any(dim=1, keepdim=True)
    down = (one_hot_mask[..., 1:, :] != one_hot_mask[..., :-1, :]).any(dim=1, keepdim=True)
    for part, differs in (
        (edges[..., 1:], across),
        (edges[..., :-1], across),
        (edges[..., 1:, :], down),
        (edges[..., :-1, :], down),
    ):
        part[differs] = 1
    return edges

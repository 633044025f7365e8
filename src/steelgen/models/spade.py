"""Group normalization and spatially-adaptive normalization (SPADE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]
"""γ and β of one SPADE norm, each (N, channels, h, w)."""


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He 2018, arXiv 1803.08494) that keeps bf16 and fp16 features in their dtype.

    CUDA's autocast would run it in fp32 and keep an fp32 copy of every feature map for the backward pass. The kernels
    accumulate mean and variance in fp32 in any case.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, ...) → the same shape and dtype."""
        if features.dtype == torch.float32:
            return super().forward(features)
        weight, bias = (None if tensor is None else tensor.to(features.dtype) for tensor in (self.weight, self.bias))
        with torch.autocast(features.device.type, enabled=False):
            return F.group_norm(features, self.num_groups, weight, bias, self.eps)


class SpadeNorm(nn.Module):
    """GroupNorm without parameters, then x·(1 + γ(mask)) + β(mask).

    γ and β depend on the mask only, so they are computed separately (`compute_modulation`) and reused in all steps of a
    sampling run.

    Source: Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization" (arXiv 1903.07291),
    eq. 1, with GroupNorm as in Wang et al. 2022, "Semantic Image Synthesis via Diffusion Models" (arXiv 2207.00050).

    Args:
        channels: channels of the features; divisible by `num_groups`.
        mask_channels: channels of the one-hot mask.
        hidden_channels: width of the convolution shared by γ and β.
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

        If γ and β have fewer rows than the features, the last row is used for all remaining rows: the null mask of
        guidance, shared by the batch.
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
        mode: "nearest" samples one pixel (SPADE, ISDM); "area" gives area shares per class, which keep films thinner
            than a feature pixel visible at coarse levels.
    """
    full = tuple(one_hot_mask.shape[-2:])
    return {size: one_hot_mask if size == full else F.interpolate(one_hot_mask, size=size, mode=mode) for size in sizes}


def shrink_one_hot(one_hot_mask: Tensor, factor: int, mode: str) -> Tensor:
    """Shrinks a one-hot mask (N, K, H, W) to (N, K, ceil(H / factor), ceil(W / factor)).

    Edges that are no multiple of the factor are padded by their last rows and columns.

    Args:
        mode: see `build_mask_pyramid`.
    """
    height, width = one_hot_mask.shape[-2:]
    if not one_hot_mask.shape[1]:  # torch pads no empty tensors
        return one_hot_mask.new_zeros(len(one_hot_mask), 0, -(-height // factor), -(-width // factor))
    padded = F.pad(one_hot_mask, (0, -width % factor, 0, -height % factor), mode="replicate")
    size = (padded.shape[2] // factor, padded.shape[3] // factor)
    return build_mask_pyramid(padded, [size], mode)[size]


def mark_edges(one_hot_mask: Tensor) -> Tensor:
    """Marks pixels that differ in class from one of their four neighbors by 1, all others by 0.

    Source: the instance edges of Wang et al. 2018, "pix2pixHD" (arXiv 1711.11585), section 3.3, applied to classes.

    Args:
        one_hot_mask: (N, K, H, W); the null mask, all zeros, has no edges.

    Returns:
        (N, 1, H, W) of the mask's dtype.
    """
    across = (one_hot_mask[..., 1:] != one_hot_mask[..., :-1]).any(dim=1, keepdim=True)
    down = (one_hot_mask[..., 1:, :] != one_hot_mask[..., :-1, :]).any(dim=1, keepdim=True)
    sides = ((across, (1, 0)), (across, (0, 1)), (down, (0, 0, 1, 0)), (down, (0, 0, 0, 1)))
    return torch.stack([F.pad(differs, padding) for differs, padding in sides]).any(dim=0).to(one_hot_mask.dtype)


@dataclass(frozen=True)
class MaskFeatures:
    """γ and β of every SPADE norm for a batch of masks, in the order of the forward pass.

    They may have fewer rows than the images; see `SpadeNorm.forward`.
    """

    modulations: tuple[Modulation | None, ...]
    """None where γ and β are recomputed in each forward pass to save memory."""
    pyramid: tuple[Tensor, ...]
    """The masks at the resolution of each level."""
    conditions: Tensor | None = None
    """(N, time_channels) embedded conditions, the same for all steps; None without conditions."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        tensors = [*self.pyramid, *(tensor for cached in self.modulations if cached for tensor in cached)]
        return sum(tensor.nbytes for tensor in tensors)

    def select(self, rows: slice) -> MaskFeatures:
        """Returns the features of some of the masks."""
        return MaskFeatures(
            tuple(None if cached is None else (cached[0][rows], cached[1][rows]) for cached in self.modulations),
            tuple(mask[rows] for mask in self.pyramid),
            None if self.conditions is None else self.conditions[rows],
        )

"""Building blocks of the semantic U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.models.spade import GroupNorm, Modulation, SpadeNorm

Resample = Literal["down", "up"] | None


def zero_initialized(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Sets weight and bias to zero, so that a residual block starts as the identity (Dhariwal & Nichol 2021)."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def resample(features: Tensor, direction: Resample) -> Tensor:
    """Halves (2x2 mean) or doubles (nearest) the resolution of (N, C, h, w); None keeps it."""
    if direction == "down":
        return F.avg_pool2d(features, 2)
    if direction == "up":
        # torch.compile turns the derivative of F.interpolate into scattered additions, a fifth of a step on a GPU.
        return _repeat(features) if torch.compiler.is_compiling() else F.interpolate(features, scale_factor=2.0)
    return features


def _repeat(features: Tensor) -> Tensor:
    """(N, C, h, w) → (N, C, 2h, 2w), each pixel four times; channels last in memory."""
    count, channels, height, width = features.shape
    pixels = features.permute(0, 2, 3, 1)[:, :, None, :, None].expand(count, height, 2, width, 2, channels)
    return pixels.reshape(count, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """norm → SiLU → (resample) → conv → time embedding → norm → SiLU → dropout → conv, plus a skip connection.

    With `mask_channels` both norms are SPADE norms, else plain GroupNorms.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), section 3; SPADE norms as in Wang et al. 2022 (arXiv 2207.00050),
    section 3.2.

    Args:
        in_channels, out_channels: channels of the input and output.
        time_channels: length of the time embedding.
        mask_channels: channels of the one-hot mask; None builds a plain block.
        spade_channels: hidden width of the SPADE norms.
        num_groups: groups of every norm.
        dropout: dropout probability before the second convolution.
        scale_shift: the time embedding scales and shifts the second norm's output; else it is added before that norm.
        resample_by: change of resolution inside the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        mask_channels: int | None,
        spade_channels: int,
        num_groups: int,
        dropout: float,
        scale_shift: bool,
        resample_by: Resample = None,
    ) -> None:
        super().__init__()

        def build_norm(channels: int) -> nn.Module:
            if mask_channels is None:
                return GroupNorm(num_groups, channels)
            return SpadeNorm(channels, mask_channels, spade_channels, num_groups)

        self.resample_by: Resample = resample_by
        self.scale_shift = scale_shift
        self.norm_1 = build_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm_2 = build_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero_initialized(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor, time_embedding: Tensor, modulations: Sequence[Modulation] = ()) -> Tensor:
        """Maps (N, in_channels, h, w) to (N, out_channels, h', w').

        Args:
            time_embedding: (N, time_channels), after its activation.
            modulations: γ and β of the two SPADE norms; empty for a plain block.
        """
        first, second = ((modulation,) for modulation in modulations) if modulations else ((), ())
        hidden = resample(F.silu(self.norm_1(features, *first)), self.resample_by)
        hidden = self.conv_1(hidden)
        time = self.time(time_embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm_2(hidden, *second), 1 + scale)
        else:
            hidden = self.norm_2(hidden + time, *second)
        hidden = self.conv_2(self.dropout(F.silu(hidden)))
        return self.skip(resample(features, self.resample_by)) + hidden


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a feature map, with a skip connection.

    The output of `to_qkv` holds queries, keys and values in that order, split into heads.
    """

    def __init__(self, channels: int, num_heads: int, num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = zero_initialized(nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        n, channels, height, width = features.shape
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # (N, h·w, C)
        qkv = self.to_qkv(tokens).view(n, height * width, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, h·w, C/heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self.to_out(attended.transpose(1, 2).reshape(n, height * width, channels))
        return features + attended.transpose(1, 2).reshape(n, channels, height, width)


class Downsample(nn.Module):
    """Halves the resolution with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h/2, w/2)."""
        return self.conv(features)


class Upsample(nn.Module):
    """Doubles the resolution (nearest), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, 2h, 2w)."""
        return self.conv(resample(features, "up"))


class PatchSplit(nn.Module):
    """Makes features of pixels from those of patches of pixels; a norm at full resolution sees the mask.

    The features of each patch become those of its pixels (pixel shuffle); a convolution of the network's own input is
    added, so that single pixels need not pass through the patches.

    Args:
        in_channels, out_channels: channels of the features of patches and of pixels.
        seen_channels: channels of the network's input.
        patch_size: edge of the patches in pixels.
        mask_channels: channels of the one-hot mask; None builds a plain norm.
        spade_channels: hidden width of the SPADE norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        seen_channels: int,
        patch_size: int,
        mask_channels: int | None,
        spade_channels: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.expand = nn.Conv2d(in_channels, out_channels * patch_size**2, 3, padding=1)
        self.skip = nn.Conv2d(seen_channels, out_channels, 3, padding=1)
        self.norm: nn.Module = (
            GroupNorm(1, out_channels)
            if mask_channels is None
            else SpadeNorm(out_channels, mask_channels, spade_channels, 1)
        )

    def forward(self, features: Tensor, pixels: Tensor, modulations: Sequence[Modulation] = ()) -> Tensor:
        """Maps features (N, in_channels, h, w) of patches to (N, out_channels, H, W).

        Args:
            pixels: (N, seen_channels, H, W), the network's input.
            modulations: γ and β of the SPADE norm; empty for a plain one.
        """
        return self.norm(F.pixel_shuffle(self.expand(features), self.patch_size) + self.skip(pixels), *modulations)


class UNetStage(nn.Module):
    """A residual block, optional attention and an optional change of resolution."""

    def __init__(
        self, block: ResidualBlock, attention: SelfAttention | None = None, resampler: nn.Module | None = None
    ):
        super().__init__()
        self.block = block
        self.attention = attention
        self.resampler = resampler

    def forward(self, features: Tensor, time_embedding: Tensor, modulations: Sequence[Modulation] = ()) -> Tensor:
        """Maps the features; `modulations` are γ and β of the stage's SPADE norms."""
        features = self.block(features, time_embedding, modulations[:2])
        if self.attention is not None:
            features = self.attention(features)
        if isinstance(self.resampler, ResidualBlock):
            return self.resampler(features, time_embedding, modulations[2:])
        return features if self.resampler is None else self.resampler(features)

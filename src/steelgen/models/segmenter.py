"""U-Nets for segmentation, plain and with a given encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

DECODER_WIDTHS = (96, 64, 48, 24)
"""Channels of the decoder stages, from 1/16 to 1/2 of the image size."""


class SegmenterUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with group norm.

    Each level halves the resolution and doubles the channels.

    Args:
        in_channels: 1 or 3.
        num_classes: classes of the mask.
        base_channels: channels of the first level, a multiple of 8.
        num_levels: levels above the bottleneck; inputs are padded to a multiple of 2^num_levels.
    """

    def __init__(self, in_channels: int, num_classes: int, base_channels: int = 24, num_levels: int = 3) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(num_levels + 1)]
        self.stride = 2**num_levels
        self.encoder = nn.ModuleList(
            DoubleConv(before, width) for before, width in zip([in_channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottleneck = DoubleConv(widths[-2], widths[-1])
        self.decoder = nn.ModuleList(
            DoubleConv(below + width, width) for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(base_channels, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) in [-1, 1] → logits (N, num_classes, H, W)."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for block in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.head(x)[..., :height, :width]


class DoubleConv(nn.Sequential):
    """Twice: 3×3 convolution, group norm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
        )


class EncoderUNet(nn.Module):
    """U-Net with a given encoder and a light decoder of depthwise-separable convolutions with group norm.

    The decoder ends at half the image size; its logits are upsampled.

    Args:
        encoder: images → feature maps at 1/2, 1/4, … of the image size; has `channels` (one entry per map) and
            `stride` (of the last map).
        num_classes: classes of the mask.
        widths: channels of the decoder stages, multiples of 8, coarsest first; one fewer than maps.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, widths: Sequence[int] = DECODER_WIDTHS) -> None:
        super().__init__()
        self.encoder = encoder
        self.pretrained_part: str | None = None
        channels: list[int] = list(encoder.channels)[::-1]  # type: ignore[arg-type]
        self.stride = int(encoder.stride)  # type: ignore[arg-type]
        below = [channels[0], *widths[:-1]]
        self.decoder = nn.ModuleList(
            nn.Sequential(SeparableConv(low + skip, width), SeparableConv(width, width))
            for low, skip, width in zip(below, channels[1:], widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W)."""
        height, width = images.shape[-2:]
        maps = self.encoder(F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate"))
        x = maps[-1]
        for skip, block in zip(maps[-2::-1], self.decoder, strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="bilinear"), skip], dim=1))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")[..., :height, :width]


class SeparableConv(nn.Sequential):
    """3×3 depthwise convolution, 1×1 convolution, group norm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
        )


class Enlarged(nn.Module):
    """Runs a network on upsampled images and resizes its logits back.

    Most encoders lose classes that are only one or two pixels wide before their first feature map.

    Args:
        network: images → logits of the same size.
        factor: scale factor of the edges, at least 1.
    """

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W)."""
        height, width = images.shape[-2:]
        size = (round(height * self.factor), round(width * self.factor))
        logits = self.network(F.interpolate(images, size, mode="bicubic").clamp(-1, 1))
        return F.interpolate(logits, (height, width), mode="bilinear")

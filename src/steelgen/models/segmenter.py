"""A small U-Net that judges: what a network trained on real micrographs sees in an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SegmenterUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with group norm.

    Each level halves the grid and doubles the width.

    Args:
        in_channels: 1 or 3.
        num_classes: classes of the mask.
        base_channels: width of the first level, a multiple of 8.
        num_levels: levels above the bottleneck; any input size is padded to a multiple of 2^num_levels.
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

"""Networks that classify whole images, sound or defective."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from steelgen.models.architectures import build_lite_encoder
from steelgen.models.segmenter import DoubleConv


def build_classifier(name: str, in_channels: int, base_channels: int = 16, weights: str | None = None) -> nn.Module:
    """Builds a classifier of two classes, optionally with a pretrained encoder.

    Args:
        name: cnn, or an encoder from `LITE`.
        in_channels: 1 or 3.
        base_channels: width of cnn, a multiple of 8.
        weights: encoder weights: auto or imagenet (packaged), a file, or None for random ones; cnn is always random.

    Returns:
        A module: (N, in_channels, H, W) in [-1, 1] → logits (N,) of the second class.

    Raises:
        InputError: if weights are missing or do not fit.
    """
    if name == "cnn":
        return Classifier(ConvEncoder(in_channels, base_channels))
    network = Classifier(build_lite_encoder(name, weights))
    network.pretrained_part = "encoder" if weights else None
    return network


class Classifier(nn.Module):
    """A linear head on the mean and the maximum of an encoder's last feature map.

    The maximum keeps a defect that covers a small part of the image, the mean one that covers much of it.

    Args:
        encoder: images → feature maps; has `channels` (one entry per map) and `stride` (of the last map).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pretrained_part: str | None = None
        self.stride = int(encoder.stride)  # type: ignore[arg-type]
        channels: list[int] = encoder.channels  # type: ignore[assignment]
        self.head = nn.Linear(2 * channels[-1], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] → logits (N,)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        last = self.encoder(padded)[-1]
        return self.head(torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1))[:, 0]


class ConvEncoder(nn.Module):
    """Feature maps of a small network: blocks of two convolutions, each at half the resolution of the one before.

    Args:
        in_channels: 1 or 3.
        base_channels: channels of the first map, a multiple of 8; each further map has twice as many.
        num_maps: number of feature maps.
    """

    def __init__(self, in_channels: int, base_channels: int, num_maps: int = 4) -> None:
        super().__init__()
        self.channels = [base_channels * 2**level for level in range(num_maps)]
        self.stride = 2 ** (num_maps - 1)
        self.blocks = nn.ModuleList(
            DoubleConv(before, width)
            for before, width in zip([in_channels, *self.channels], self.channels, strict=False)
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, H, W) in [-1, 1], H and W multiples of `stride` → maps (N, channels[i], H / 2^i, W / 2^i)."""
        maps: list[torch.Tensor] = []
        x = images
        for block in self.blocks:
            x = block(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps

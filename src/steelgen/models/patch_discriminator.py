"""The discriminator of overlapping patches, for adversarial losses of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Discriminator of overlapping patches (PatchGAN, Isola et al. 2017, arXiv 1611.07004).

    Args:
        in_channels: channels of the images.
        width: channels of the first layer; each layer doubles them, up to 8 times.
        layers: convolutions of stride 2; a patch is 16, 34, 70 px … wide with 1, 2, 3 … of them.
        noise: standard deviation of the Gaussian noise added to the input of every convolution in training.
    """

    def __init__(self, in_channels: int, width: int, layers: int, noise: float = 0.0) -> None:
        super().__init__()
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        strides = [2] * layers + [1]
        pairs = zip([in_channels, *widths], widths, strides, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 4, stride, padding=1) for before, after, stride in pairs)
        self.to_score = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self._noise = noise

    def forward(self, images: Tensor, full_precision: bool = False) -> Tensor:
        """(N, in_channels, H, W) → scores (N, h, w), one per patch.

        Args:
            full_precision: compute in float32 even under autocast, for gradient penalties.
        """
        enabled = torch.is_autocast_enabled(images.device.type) and not full_precision
        with torch.autocast(images.device.type, enabled=enabled):
            hidden = images
            for conv in self.convs:
                hidden = F.leaky_relu(conv(self._disturb(hidden)), 0.2)
            return self.to_score(self._disturb(hidden))[:, 0]

    def _disturb(self, features: Tensor) -> Tensor:
        if not self._noise or not self.training:
            return features
        return features + self._noise * torch.randn_like(features)

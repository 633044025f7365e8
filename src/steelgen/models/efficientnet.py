"""EfficientNet-Lite0 as an extractor of image features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


class EfficientNetLite0Features(nn.Module):
    """The 1280 pooled features of EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946)."""

    num_features = 1280
    input_size = 224

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] → (N, 1280); resized to 224 px (bilinear, antialiased)."""
        size = (self.input_size, self.input_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        # The published weights expect (gray level - 127) / 128.
        return self.network.extract_features((images * 255 - 127) / 128).mean(dim=(2, 3))

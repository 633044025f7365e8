"""Networks of DCGAN.

Source: Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks" (arXiv 1511.06434), section 3 and figure 1, for image sizes of 8 px times a power of two.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST = 4
"""Edge in pixels of the coarsest feature maps."""


class DcganGenerator(nn.Module):
    """DCGAN generator: latent vectors → images.

    Args:
        image_size: edge of the images, 4 times a power of two.
        in_channels: 1 for gray images, 3 for RGB.
        latent_dim: length of the latent vectors.
        base_channels: channels of the finest feature maps; each coarser level has twice as many.
    """

    def __init__(self, image_size: int, in_channels: int, latent_dim: int, base_channels: int) -> None:
        super().__init__()
        widths = _list_widths(image_size, base_channels)[::-1]
        self.project = nn.ConvTranspose2d(latent_dim, widths[0], _SMALLEST, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False) for before, after in pairwise(widths)
        )
        self.to_image = nn.ConvTranspose2d(widths[-1], in_channels, 4, stride=2, padding=1)
        self.apply(_initialize)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, latent_dim), standard normal → (N, in_channels, image_size, image_size) in [-1, 1]."""
        features = F.relu(self.norms[0](self.project(latents[:, :, None, None])))
        for norm, upsample in zip(self.norms[1:], self.upsample, strict=True):
            features = F.relu(norm(upsample(features)))
        return self.to_image(features).tanh()


class DcganDiscriminator(nn.Module):
    """DCGAN discriminator; see `DcganGenerator` for the arguments."""

    def __init__(self, image_size: int, in_channels: int, base_channels: int) -> None:
        super().__init__()
        widths = _list_widths(image_size, base_channels)
        self.from_image = nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1)
        self.downsample = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.to_logit = nn.Conv2d(widths[-1], 1, _SMALLEST)
        self.apply(_initialize)

    def forward(self, images: Tensor, full_precision: bool = False) -> Tensor:
        """(N, in_channels, image_size, image_size) in [-1, 1] → logits (N,).

        Args:
            full_precision: compute in float32 even under autocast, for gradient penalties.
        """
        enabled = torch.is_autocast_enabled(images.device.type) and not full_precision
        with torch.autocast(images.device.type, enabled=enabled):
            features = F.leaky_relu(self.from_image(images), 0.2)
            for downsample, norm in zip(self.downsample, self.norms, strict=True):
                features = F.leaky_relu(norm(downsample(features)), 0.2)
            return self.to_logit(features)[:, 0, 0, 0]


def _list_widths(image_size: int, base_channels: int) -> list[int]:
    """Returns the channels of the feature maps, from half of image_size down to 4 px."""
    count = (image_size // _SMALLEST).bit_length() - 1
    if count < 1 or image_size != _SMALLEST * 2**count:
        raise ValueError(f"image_size {image_size}: must be 8, 16, 32 or another power of two")
    return [base_channels * 2**level for level in range(count)]


def _initialize(module: nn.Module) -> None:
    """Initializes convolutions from N(0, 0.02) and norm weights from N(1, 0.02) (section 4; the authors' code)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)

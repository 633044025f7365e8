"""Mask-conditioned generator and segmentation discriminator.

Sources: Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization" (arXiv 1903.07291), for the
generator; Schönfeld et al. 2021, "You Only Need Adversarial Supervision for Semantic Image Synthesis" (OASIS, arXiv
2012.04781), for the discriminator. Implemented from the papers, but with group norm, per-layer noise as in StyleGAN
(arXiv 1812.04948), and gradient penalties instead of spectral norm.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.models.spade import SpadeNorm, build_mask_pyramid
from steelgen.models.style_gan import (
    DownBlock,
    EqualizedConv,
    EqualizedLinear,
    activate,
    deal_noise,
    double,
    list_edges,
    list_widths,
)

_GROUP_CHANNELS = 4
"""Channels per group of the norms."""


class _SpadeBlock(nn.Module):
    """Residual block: twice SPADE norm, activation, convolution, and noise."""

    def __init__(
        self, in_channels: int, out_channels: int, num_classes: int, spade_channels: int, noise_planes: int
    ) -> None:
        super().__init__()
        self._noise_planes = noise_planes

        def build_norm(channels: int) -> SpadeNorm:
            return SpadeNorm(channels, num_classes, spade_channels, max(1, channels // _GROUP_CHANNELS))

        self.norm_1, self.norm_2 = build_norm(in_channels), build_norm(out_channels)
        self.conv_1 = EqualizedConv(in_channels, out_channels, 3)
        self.conv_2 = EqualizedConv(out_channels, out_channels, 3)
        self.noise_1, self.noise_2 = (nn.Parameter(torch.zeros(out_channels, 1, 1)) for _ in range(2))
        self.skip = EqualizedConv(in_channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor, one_hot_mask: Tensor, noise: Tensor) -> Tensor:
        first, second = noise.split(self._noise_planes, dim=1)
        hidden = activate(self.norm_1(features, self.norm_1.compute_modulation(one_hot_mask)))
        hidden = self.conv_1(hidden) + self.noise_1 * deal_noise(first, len(self.noise_1))
        hidden = activate(self.norm_2(hidden, self.norm_2.compute_modulation(one_hot_mask)))
        hidden = self.conv_2(hidden) + self.noise_2 * deal_noise(second, len(self.noise_2))
        return (hidden + self.skip(features)) / math.sqrt(2)


class SpadeGenerator(nn.Module):
    """SPADE generator: one-hot masks and latent vectors → images.

    Args:
        image_size: edge of the training images, 4 times a power of two; images may be larger.
        in_channels: 1 for gray images, 3 for RGB.
        num_classes: classes of the masks.
        latent_dim: length of the latent vectors.
        base_channels: channels of the finest feature maps; each coarser level has twice as many, up to 8 times.
        spade_channels: hidden width of the SPADE norms.
        noise_planes: independent planes of noise, dealt out to the channels of a layer in turn. A single one passes
            through the same few convolutions everywhere, which leaves the same oriented ripple in all images.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        num_classes: int,
        latent_dim: int,
        base_channels: int,
        spade_channels: int,
        noise_planes: int = 1,
    ) -> None:
        super().__init__()
        widths = list_widths(list_edges(image_size), base_channels)
        self.latent_dim, self._noise_planes = latent_dim, noise_planes
        self.from_latent = EqualizedLinear(latent_dim, widths[0])
        self.from_mask = EqualizedConv(num_classes, widths[0], 3)
        self.blocks = nn.ModuleList(
            _SpadeBlock(before, after, num_classes, spade_channels, noise_planes)
            for before, after in pairwise([widths[0], *widths])
        )
        self.to_image = EqualizedConv(widths[-1], in_channels, 3)

    def count_noise(self, height: int, width: int) -> int:
        """Returns the number of noise values of an image, summed over layers."""
        return sum(2 * self._noise_planes * rows * columns for rows, columns in self._list_sizes(height, width))

    def forward(self, vectors: Tensor, one_hot_mask: Tensor) -> Tensor:
        """Generates images.

        Args:
            vectors: (N, latent_dim + noise), standard normal; see `count_noise`.
            one_hot_mask: (N, num_classes, H, W), all zero at ignored pixels.

        Returns:
            (N, in_channels, H, W), unbounded.
        """
        height, width = one_hot_mask.shape[-2:]
        sizes = self._list_sizes(height, width)
        padding = (0, sizes[-1][1] - width, 0, sizes[-1][0] - height)
        masks = build_mask_pyramid(F.pad(one_hot_mask, padding, mode="replicate"), sizes, "area")
        latents, noise = vectors.split([self.latent_dim, vectors.shape[1] - self.latent_dim], dim=1)
        features = self.from_mask(masks[sizes[0]]) + self.from_latent(latents)[:, :, None, None]
        fields = noise.split([2 * self._noise_planes * rows * columns for rows, columns in sizes], dim=1)
        for block, size, field in zip(self.blocks, sizes, fields, strict=True):
            if features.shape[-2:] != size:
                features = double(features)
            features = block(features, masks[size], field.unflatten(1, (2 * self._noise_planes, *size)))
        return self.to_image(activate(features))[..., :height, :width]

    def _list_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns the sizes of the feature maps, coarsest first; the image is cropped from the finest."""
        count = len(self.blocks)
        coarsest = -(-height // 2 ** (count - 1)), -(-width // 2 ** (count - 1))
        return [(coarsest[0] * 2**level, coarsest[1] * 2**level) for level in range(count)]


class SegmentingDiscriminator(nn.Module):
    """U-Net discriminator that classifies each pixel as one of the mask's classes or as generated.

    Args:
        image_size: edge of the images, 4 times a power of two.
        in_channels: 1 for gray images, 3 for RGB.
        num_classes: classes of the masks.
        base_channels: channels of the finest feature maps; each coarser level has twice as many, up to 8 times.
        fine: see `DownBlock`.
    """

    def __init__(
        self, image_size: int, in_channels: int, num_classes: int, base_channels: int, fine: bool = False
    ) -> None:
        super().__init__()
        widths = list_widths(list_edges(image_size), base_channels)[::-1]
        self.from_image = EqualizedConv(in_channels, widths[0], 3)
        self.down = nn.ModuleList(DownBlock(before, after, fine) for before, after in pairwise(widths))
        self.up = nn.ModuleList(EqualizedConv(coarse + fine, fine, 3) for coarse, fine in pairwise(widths[::-1]))
        self.to_logits = EqualizedConv(widths[0], num_classes + 1, 3)

    def forward(self, images: Tensor, full_precision: bool = False) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes + 1, H, W); the last class is that of generated pixels.

        Args:
            full_precision: see `StyleDiscriminator.forward`.
        """
        enabled = torch.is_autocast_enabled(images.device.type) and not full_precision
        with torch.autocast(images.device.type, enabled=enabled):
            levels = [activate(self.from_image(images))]
            for block in self.down:
                levels.append(block(levels[-1]))
            features = levels.pop()
            for conv in self.up:
                features = activate(conv(torch.cat([double(features), levels.pop()], dim=1)))
            return self.to_logits(features)


def compute_log_odds(logits: Tensor) -> Tensor:
    """Computes the log-odds of each pixel of being real, logits (N, num_classes + 1, H, W) → (N, H, W)."""
    return logits[:, :-1].logsumexp(dim=1) - logits[:, -1]

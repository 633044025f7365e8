"""Networks of latent diffusion: images ↔ latents, and masks ↔ latents.

Latents of both are continuous maps of a smaller resolution. The one of images is diffusers' `AutoencoderKL` (Rombach et
al. 2022, arXiv 2112.10752, section 3.1), without attention, so that it runs at any size; the one of masks is a strided
convolutional network that is trained by cross-entropy alone, because the codes of a categorical mask must be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOMENTUM = 0.01
"""Share of a new batch in the statistics of the latents."""
_MIN_DEVIATION = 1e-6


class LatentStatistics(nn.Module):
    """Mean per channel and one standard deviation of latents, averaged over the latest training batches.

    Standardized latents have the unit variance that noise schedules are made for (Rombach et al. 2022, section D.1).

    Args:
        channels: of the latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batches: Tensor
        self.mean: Tensor
        self.square: Tensor
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))

    @torch.no_grad()
    def update(self, latents: Tensor) -> None:
        """Adds a batch of latents (N, channels, h, w); the first ones are averaged evenly."""
        self.batches += 1
        share = (1 / self.batches).clamp(min=_MOMENTUM)
        latents = latents.float()
        self.mean.lerp_(latents.mean(dim=(0, 2, 3)), share)
        self.square.lerp_(latents.square().mean(dim=(0, 2, 3)), share)

    def standardize(self, latents: Tensor) -> Tensor:
        """Shifts and scales latents (N, channels, h, w) to mean 0 per channel and standard deviation 1 in total."""
        return (latents - self.mean[:, None, None]) / self._deviation

    def restore(self, standardized: Tensor) -> Tensor:
        """Inverts `standardize`."""
        return standardized * self._deviation + self.mean[:, None, None]

    @property
    def _deviation(self) -> Tensor:
        return (self.square - self.mean.square()).mean().clamp(min=_MIN_DEVIATION**2).sqrt()


class ReconstructedImages(NamedTuple):
    """Output of `ImageCodec` for N images."""

    images: Tensor
    """(N, C, H, W) float32."""
    divergence: Tensor
    """(N,) KL divergence of the posterior from a standard normal distribution, in nats per value of the image."""


class ImageCodec(nn.Module):
    """Variational autoencoder of images.

    Args:
        in_channels: 1 for gray images, 3 for RGB.
        latent_channels: channels of the latents.
        widths: channels per resolution level; each level but the first halves the resolution.
        blocks: residual blocks per level.
        norm_groups: groups of every GroupNorm.
    """

    def __init__(
        self, in_channels: int, latent_channels: int, widths: Sequence[int], blocks: int, norm_groups: int
    ) -> None:
        super().__init__()
        # It takes a second to import, and semantic diffusion imports this module.
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            latent_channels=latent_channels,
            norm_num_groups=norm_groups,
            mid_block_add_attention=False,
        )
        self.statistics = LatentStatistics(latent_channels)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> ReconstructedImages:
        """Encodes and decodes images (N, C, H, W), edges a multiple of the downsampling factor.

        Args:
            noise: (N, latent_channels, h, w) standard normal, for a sample of the posterior; None uses its mean.
        """
        posterior = self.vae.encode(images).latent_dist
        if self.training:
            self.statistics.update(posterior.mean)
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        divergence = posterior.kl().float() / images[0].numel()
        return ReconstructedImages(self.vae.decode(latents).sample.float(), divergence)

    def encode(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → standardized latents (N, latent_channels, h, w) float32, the mean of the posterior."""
        return self.statistics.standardize(self.vae.encode(images).latent_dist.mean.float())

    def decode(self, latents: Tensor) -> Tensor:
        """Standardized latents (N, latent_channels, h, w) → images (N, C, H, W) float32."""
        return self.vae.decode(self.statistics.restore(latents)).sample.float()


class MaskCodec(nn.Module):
    """Deterministic autoencoder of masks.

    Args:
        num_classes: channels of the one-hot mask, and of the logits.
        latent_channels: channels of the latents.
        width: channels of all hidden features.
        levels: number of times that the resolution is halved.
    """

    def __init__(self, num_classes: int, latent_channels: int, width: int, levels: int) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(num_classes, width, 3, padding=1)]
        for _ in range(levels):
            down += [nn.SiLU(), nn.Conv2d(width, width, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(
            *down, _Residual(width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1)
        )
        up: list[nn.Module] = [nn.Conv2d(latent_channels, width, 3, padding=1), _Residual(width)]
        for _ in range(levels):
            # Each pixel has weights of its own (Shi et al. 2016, arXiv 1609.05158): edges stay where they are.
            up += [nn.SiLU(), nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(width, num_classes, 3, padding=1))
        self.statistics = LatentStatistics(latent_channels)

    def forward(self, one_hot_mask: Tensor) -> Tensor:
        """One-hot masks (N, num_classes, H, W) → logits of the same shape, float32; ignored pixels are all zero."""
        latents = self.encoder(one_hot_mask)
        if self.training:
            self.statistics.update(latents)
        return self.decoder(latents).float()

    def encode(self, one_hot_mask: Tensor) -> Tensor:
        """(N, num_classes, H, W) → standardized latents (N, latent_channels, h, w) float32."""
        return self.statistics.standardize(self.encoder(one_hot_mask).float())

    def decode(self, latents: Tensor) -> Tensor:
        """Standardized latents (N, latent_channels, h, w) → logits (N, num_classes, H, W) float32."""
        return self.decoder(self.statistics.restore(latents)).float()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.conv_2(F.silu(self.conv_1(F.silu(features))))

"""A style-based generator and its residual discriminator, for images of 8 to 512 px.

Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958): mapping network,
weight demodulation, per-layer noise, output skips, residual discriminator; equalized learning rates as in Karras et al.
2018 (arXiv 1710.10196), section 4.1. Implemented from the papers. The discriminator omits minibatch standard deviation,
which the relativistic loss does not need (Huang et al. 2024, arXiv 2501.05441, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST = 4
"""Edge in pixels of the coarsest feature maps."""
_WIDEST = 8
"""Upper limit of the channels of a level, as a multiple of the finest level's."""
_MAPPING_RATE = 0.01
"""Learning-rate factor of the mapping network (arXiv 1812.04948, appendix C)."""


def list_edges(image_size: int) -> list[int]:
    """Returns the edges of the feature maps, from 4 px up.

    Raises:
        ValueError: if image_size is not 4 times a power of two.
    """
    count = (image_size // _SMALLEST).bit_length() - 1
    if count < 1 or image_size != _SMALLEST * 2**count:
        raise ValueError(f"image_size {image_size}: must be 8, 16, 32 or another power of two")
    return [_SMALLEST * 2**level for level in range(count + 1)]


def list_widths(edges: Sequence[int], base_channels: int) -> list[int]:
    """Returns the channels of the feature maps, from 4 px up."""
    return [base_channels * min(_WIDEST, edges[-1] // edge) for edge in edges]


def activate(features: Tensor) -> Tensor:
    """Applies a variance-preserving leaky ReLU."""
    return F.leaky_relu(features, 0.2) * math.sqrt(2)


def double(features: Tensor) -> Tensor:
    """Doubles the resolution of (N, C, h, w), bilinearly."""
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)


class EqualizedLinear(nn.Module):
    """Linear layer with equalized learning rate: weights have unit variance and are scaled at run time.

    Args:
        in_features, out_features: lengths of the vectors.
        rate: learning-rate factor.
        bias: initial value of the bias.
    """

    def __init__(self, in_features: int, out_features: int, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias / rate))
        self._gain, self._rate = rate / math.sqrt(in_features), rate

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, in_features) → (N, out_features)."""
        return F.linear(vectors, self.weight * self._gain, self.bias * self._rate)


class EqualizedConv(nn.Module):
    """Resolution-preserving convolution with equalized learning rate."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self._gain, self._padding = 1 / math.sqrt(in_channels * kernel_size**2), kernel_size // 2

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, out_channels, h, w)."""
        return F.conv2d(features, self.weight * self._gain, self.bias, padding=self._padding)


class ModulatedConv(nn.Module):
    """Convolution modulated by a style per image (section 2.2, eqs. 1 and 3).

    Scales the features before and after the convolution, which is equivalent to scaling the weights per image.

    Args:
        in_channels, out_channels: channels of the features.
        style_dim: length of the styles.
        kernel_size: edge of the kernel.
        demodulate: normalize the variance of each output channel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, kernel_size: int, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.to_scale = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self._gain, self._padding = 1 / math.sqrt(in_channels * kernel_size**2), kernel_size // 2
        self._demodulate = demodulate

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """(N, in_channels, h, w), (N, style_dim) → (N, out_channels, h, w)."""
        scale, weight = self.to_scale(style), self.weight * self._gain
        features = F.conv2d(features * scale[:, :, None, None], weight, padding=self._padding)
        if not self._demodulate:
            return features
        variance = F.linear(scale.square(), weight.square().sum(dim=(2, 3)))  # (N, out_channels)
        return features * (variance + 1e-8).rsqrt()[:, :, None, None]


def deal_noise(noise: Tensor, channels: int) -> Tensor:
    """Deals planes of noise (N, planes, h, w) out to channels in turn: (N, channels, h, w).

    A single plane is returned as it is, to be broadcast.
    """
    planes = noise.shape[1]
    return noise if planes == 1 else noise.repeat(1, -(-channels // planes), 1, 1)[:, :channels]


class _StyleLayer(nn.Module):
    """Modulated convolution, optional upsampling, noise, bias, activation."""

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, noise_planes: int, doubles: bool = False
    ) -> None:
        super().__init__()
        self._doubles = doubles
        self.conv = ModulatedConv(in_channels, out_channels, style_dim, 3)
        # One strength per layer, as in the paper, or one per channel.
        self.noise_strength = nn.Parameter(torch.zeros(1 if noise_planes == 1 else (out_channels, 1, 1)))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, features: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        features = self.conv(features, style)
        if self._doubles:
            features = double(features)
        noise = self.noise_strength * deal_noise(noise, len(self.bias))
        return activate(features + noise + self.bias[:, None, None])


class StyleGenerator(nn.Module):
    """StyleGAN2 generator: latent vectors z → styles w → images.

    Args:
        image_size: edge of the images, 4 times a power of two.
        in_channels: 1 for gray images, 3 for RGB.
        latent_dim: length of the latent vectors z and of the styles w.
        base_channels: channels of the finest feature maps; each coarser level has twice as many, up to 8 times.
        noise_planes: independent planes of noise, dealt out to the channels of a layer in turn. A single one passes
            through the same few convolutions everywhere, which leaves specks of one shape and direction.
        mapping_layers: layers of the mapping network.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        latent_dim: int,
        base_channels: int,
        noise_planes: int = 1,
        mapping_layers: int = 2,
    ) -> None:
        super().__init__()
        edges = list_edges(image_size)
        widths = list_widths(edges, base_channels)
        self.latent_dim, self._noise_planes = latent_dim, noise_planes
        self.mapping = nn.ModuleList(
            EqualizedLinear(latent_dim, latent_dim, _MAPPING_RATE) for _ in range(mapping_layers)
        )
        self.constant = nn.Parameter(torch.randn(widths[0], _SMALLEST, _SMALLEST))
        layers = [_StyleLayer(widths[0], widths[0], latent_dim, noise_planes)]
        self._noise_edges = edges[:1]
        for edge, (before, after) in zip(edges[1:], pairwise(widths), strict=True):
            layers.append(_StyleLayer(before, after, latent_dim, noise_planes, doubles=True))
            layers.append(_StyleLayer(after, after, latent_dim, noise_planes))
            self._noise_edges += [edge, edge]
        self.layers = nn.ModuleList(layers)
        self.to_image = nn.ModuleList(
            ModulatedConv(width, in_channels, latent_dim, 1, demodulate=False) for width in widths
        )
        self.image_bias = nn.Parameter(torch.zeros(in_channels))
        self.num_styles = len(self.layers) + 1
        """One style per layer, plus one for the output of the finest level."""
        self.noise_size = noise_planes * sum(edge**2 for edge in self._noise_edges)
        """Noise values per image, summed over layers."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Standard normal (N, latent_dim + noise_size) → (N, in_channels, image_size, image_size), unbounded."""
        return self.synthesize(self.find_styles(vectors[:, : self.latent_dim]), vectors[:, self.latent_dim :])

    def find_styles(self, latents: Tensor) -> Tensor:
        """z (N, latent_dim) → w (N, latent_dim)."""
        styles = latents * (latents.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping:
            styles = activate(layer(styles))
        return styles

    def synthesize(self, styles: Tensor, noise: Tensor) -> Tensor:
        """Generates images from styles.

        Args:
            styles: (N, latent_dim), shared by all layers, or (N, num_styles, latent_dim).
            noise: (N, noise_size).
        """
        each = styles.unbind(dim=1) if styles.ndim == 3 else [styles] * self.num_styles
        planes = self._noise_planes
        parts = noise.split([planes * edge**2 for edge in self._noise_edges], dim=1)
        fields = [part.unflatten(1, (planes, edge, edge)) for part, edge in zip(parts, self._noise_edges, strict=True)]
        features = self.constant.expand(len(styles), -1, -1, -1)
        features = self.layers[0](features, each[0], fields[0])
        image = self.to_image[0](features, each[1])
        for level, to_image in enumerate(self.to_image[1:]):
            first = 1 + 2 * level
            features = self.layers[first](features, each[first], fields[first])
            features = self.layers[first + 1](features, each[first + 1], fields[first + 1])
            image = double(image) + to_image(features, each[first + 2])
        return image + self.image_bias[:, None, None]


class DownBlock(nn.Module):
    """Residual block: two convolutions with 2x downsampling, and a 1x1 convolution as skip.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        fine: downsample after both convolutions instead of between them.
    """

    def __init__(self, in_channels: int, out_channels: int, fine: bool = False) -> None:
        super().__init__()
        self._fine = fine
        self.conv_1 = EqualizedConv(in_channels, in_channels, 3)
        self.conv_2 = EqualizedConv(in_channels, out_channels, 3)
        self.skip = EqualizedConv(in_channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, out_channels, h/2, w/2)."""
        hidden = activate(self.conv_1(features))
        if self._fine:
            hidden = F.avg_pool2d(activate(self.conv_2(hidden)), 2)
        else:
            hidden = activate(self.conv_2(F.avg_pool2d(hidden, 2)))
        return (hidden + self.skip(F.avg_pool2d(features, 2))) / math.sqrt(2)


class StyleDiscriminator(nn.Module):
    """Residual discriminator; see `StyleGenerator` and `DownBlock` for the arguments."""

    def __init__(self, image_size: int, in_channels: int, base_channels: int, fine: bool = False) -> None:
        super().__init__()
        edges = list_edges(image_size)
        widths = list_widths(edges, base_channels)[::-1]
        self.from_image = EqualizedConv(in_channels, widths[0], 1)
        self.blocks = nn.ModuleList(DownBlock(before, after, fine) for before, after in pairwise(widths))
        self.conv = EqualizedConv(widths[-1], widths[-1], 3)
        self.hidden = EqualizedLinear(widths[-1] * _SMALLEST**2, widths[-1])
        self.to_logit = EqualizedLinear(widths[-1], 1)

    def forward(self, images: Tensor, full_precision: bool = False) -> Tensor:
        """(N, in_channels, image_size, image_size) → logits (N,).

        Args:
            full_precision: compute in float32 even under autocast, for gradient penalties.
        """
        enabled = torch.is_autocast_enabled(images.device.type) and not full_precision
        with torch.autocast(images.device.type, enabled=enabled):
            features = activate(self.from_image(images))
            for block in self.blocks:
                features = block(features)
            features = activate(self.hidden(activate(self.conv(features)).flatten(1)))
            return self.to_logit(features)[:, 0]

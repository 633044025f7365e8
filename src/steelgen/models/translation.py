"""Networks of unpaired image translation.

Sources: Zhu et al. 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (arXiv
1703.10593), section 7.2, after Johnson et al. 2016; Park et al. 2020, "Contrastive Learning for Unpaired Image-to-Image
Translation" (arXiv 2007.15651), section 3. Different from the papers: down- and upsampling have the same center, so
that nothing moves by half a pixel; upsampling resizes, then convolves, against checkerboards; the last convolution
predicts the difference to the input, also from the features at full resolution, since upsampled ones have no texture;
discriminators have no norms, which would hide gray levels from them; a random style may modulate the features, so that
one input gives images of many looks (Huang et al. 2018, "Multimodal Unsupervised Image-to-Image Translation", arXiv
1804.04732, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.models.patch_discriminator import PatchDiscriminator

Normalize = Callable[[Tensor], Tensor]
"""Normalizes features (N, C, h, w); called once per norm, in the order of the network."""
Statistics = list[tuple[Tensor, Tensor]]
"""Mean and variance, (N, C, 1, 1) each, of the features before each norm."""

ALIGNMENT = 4
"""Pixels that the edges of a translated image must be a multiple of."""
_EPSILON = 1e-5
_STYLE_SCALE = 0.3
"""Standard deviation of the modulation at the start of training."""
_ROW_TAPS = 31
"""Rows that the filter of row noise spans: lines stay in phase over about as many. Images must have more than half."""


def record_statistics(statistics: Statistics) -> Normalize:
    """Returns an instance norm that appends the statistics of its features to `statistics`."""

    def normalize(features: Tensor) -> Tensor:
        variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
        statistics.append((mean, variance))
        return (features - mean) * (variance + _EPSILON).rsqrt()

    return normalize


def fix_statistics(statistics: Statistics) -> Normalize:
    """Returns a norm with given statistics, which makes the network a function of each pixel's surroundings alone."""
    remaining: Iterator[tuple[Tensor, Tensor]] = iter(statistics)

    def normalize(features: Tensor) -> Tensor:
        mean, variance = next(remaining)
        return (features - mean) * (variance + _EPSILON).rsqrt()

    return normalize


class _Conv(nn.Module):
    """Convolution with reflection padding that keeps the size, or halves it with an even kernel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride)
        self._padding = (kernel_size - 1) // 2

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(F.pad(features, [self._padding] * 4, mode="reflect"))


class _Modulation(nn.Module):
    """Scales and shifts features as a style says: after an instance norm this is AdaIN (arXiv 1703.06868, eq. 8).

    With style_dim 0 it returns them as they are.
    """

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(style_dim, 2 * channels) if style_dim else None
        if self.layer is not None:
            nn.init.normal_(self.layer.weight, std=_STYLE_SCALE / style_dim**0.5)
            nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor, style: Tensor | None) -> Tensor:
        if self.layer is None or style is None:
            return features
        scale, shift = self.layer(style)[..., None, None].chunk(2, dim=1)
        return features * (1 + scale) + shift


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv_1 = _Conv(channels, channels, 3)
        self.conv_2 = _Conv(channels, channels, 3)
        self.modulate = _Modulation(style_dim, channels)

    def forward(self, features: Tensor, normalize: Normalize, style: Tensor | None) -> Tensor:
        hidden = self.modulate(normalize(self.conv_1(features)), style).relu()
        return features + normalize(self.conv_2(hidden))


class _RowFilter(nn.Module):
    """Filters noise across rows, then normalizes it: narrow bands that are coherent over many rows, of one strength."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (_ROW_TAPS, 1), bias=False)
        # The norm undoes the scale, and small weights turn faster at the same learning rate.
        nn.init.normal_(self.conv.weight, std=0.003)

    def forward(self, noise: Tensor, normalize: Normalize) -> Tensor:
        margin = _ROW_TAPS // 2
        return normalize(self.conv(F.pad(noise, [0, 0, margin, margin], mode="reflect")))


class TranslationGenerator(nn.Module):
    """Residual generator: images → images of the same size.

    Args:
        in_channels: 1 for gray images, 3 for RGB.
        width: channels at full resolution; each of the two lower levels has twice as many.
        blocks: residual blocks at the lowest level.
        noise_channels: channels of noise that the network sees beside the image.
        row_noise_channels: further ones, constant along each row, that a filter across rows sees first.
        style_dim: further ones, constant in each image, that set its look: they modulate the features of the blocks and
            of the decoder, and contrast and brightness of the output.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        blocks: int,
        noise_channels: int = 0,
        row_noise_channels: int = 0,
        style_dim: int = 0,
    ) -> None:
        super().__init__()
        self._noise_channels, self._style_dim = noise_channels, style_dim
        self.row_filter = _RowFilter(row_noise_channels) if row_noise_channels else None
        self.first = _Conv(in_channels + noise_channels + row_noise_channels, width, 7)
        self.down = nn.ModuleList(_Conv(width * factor, 2 * width * factor, 4, stride=2) for factor in (1, 2))
        self.blocks = nn.ModuleList(_ResidualBlock(4 * width, style_dim) for _ in range(blocks))
        self.up = nn.ModuleList(_Conv(width * factor, width * factor // 2, 3) for factor in (4, 2))
        self.modulate_up = nn.ModuleList(_Modulation(style_dim, width * factor // 2) for factor in (4, 2))
        self.modulate_output = _Modulation(style_dim, in_channels)
        self.last = _Conv(2 * width, in_channels, 7)
        nn.init.normal_(self.last.conv.weight, std=0.02)
        assert self.last.conv.bias is not None
        nn.init.zeros_(self.last.conv.bias)

    @property
    def reach(self) -> int:
        """Distance in pixels beyond which nothing influences an output pixel, if the norms' statistics are fixed."""
        # First and last convolution, blocks, down and up, and the position within the 4 px of a feature.
        rows = 0 if self.row_filter is None else _ROW_TAPS // 2
        return 3 + 3 + 8 * len(self.blocks) + 3 + 3 + ALIGNMENT + rows

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the maps that `features` adds to the output."""
        width = self.first.conv.out_channels
        middle = [4 * width] * len(self._list_compared_blocks())
        return (self.first.conv.in_channels, width, 2 * width, 4 * width, *middle)

    def list_feature_edges(self, edge: int) -> list[int]:
        """Returns the edges of these maps for images with an edge of `edge`."""
        return [edge, edge, edge // 2, *[edge // 4] * (1 + len(self._list_compared_blocks()))]

    def forward(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        normalize: Normalize = F.instance_norm,
        features: bool = False,
        decode: bool = True,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Translates images.

        Args:
            images: (N, in_channels, H, W), edges a multiple of ALIGNMENT.
            noise: (N, noise_channels + row_noise_channels + style_dim, H, W); None without any.
            normalize: see `Normalize`.
            features: also return feature maps of the encoder, from the input on.
            decode: compute the output; otherwise it is the last map of the encoder.

        Returns:
            (N, in_channels, H, W), unbounded; with `features` (output, maps).
        """
        style = None
        if noise is not None and self._style_dim:
            style = noise[:, -self._style_dim :, 0, 0]
            noise = noise[:, : -self._style_dim] if noise.shape[1] > self._style_dim else None
        if noise is not None and self.row_filter is not None:
            rows = self.row_filter(noise[:, self._noise_channels :], normalize)
            noise = torch.cat([noise[:, : self._noise_channels], rows], dim=1)
        seen = images if noise is None else torch.cat([images, noise], dim=1)
        hidden = normalize(self.first(seen)).relu()
        maps = [seen, hidden]
        for down in self.down:
            hidden = normalize(down(hidden)).relu()
            maps.append(hidden)
        compared = self._list_compared_blocks()
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, normalize, style)
            if number in compared:
                maps.append(hidden)
        if decode:
            for up, modulate in zip(self.up, self.modulate_up, strict=True):
                hidden = modulate(normalize(up(F.interpolate(hidden, scale_factor=2.0))), style).relu()
            hidden = self.modulate_output(images + self.last(torch.cat([hidden, maps[1]], dim=1)), style)
        return (hidden, maps) if features else hidden

    def _list_compared_blocks(self) -> list[int]:
        """Returns up to two blocks, at a half of the depth and at its end."""
        return sorted({(len(self.blocks) - 1) // 2, len(self.blocks) - 1})


class SpectrumDiscriminator(PatchDiscriminator):
    """Discriminator of log power spectra, which it standardizes at each frequency.

    Args:
        mean, deviation: (C, H, W) of the log power of real images at each frequency.
        width, layers: see `PatchDiscriminator`.
        per_frequency: add a weighted sum of the standardized log power to all scores; the weights, 0 at first, tell
            frequencies apart, which the convolutions do not.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, width: int, layers: int, per_frequency: bool = False) -> None:
        super().__init__(len(mean), width, layers)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.frequency_weights = nn.Parameter(torch.zeros_like(mean)) if per_frequency else None

    def forward(self, log_power: Tensor, full_precision: bool = False) -> Tensor:
        """(N, C, H, W) → scores (N, h, w); see `PatchDiscriminator.forward`."""
        seen = (log_power - self.mean) / self.deviation
        scores = super().forward(seen, full_precision)
        if self.frequency_weights is None:
            return scores
        return scores + (self.frequency_weights * seen).sum(dim=(1, 2, 3))[:, None, None]


class PatchProjector(nn.Module):
    """Two-layer networks that map features at chosen places to unit vectors (arXiv 2007.15651, section 3).

    Args:
        channels: of each feature map.
        size: length of the vectors.
    """

    def __init__(self, channels: Sequence[int], size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(count, size), nn.ReLU(), nn.Linear(size, size)) for count in channels
        )

    def forward(self, maps: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Projects the features of each map.

        Args:
            maps: (N, C, h, w) each.
            places: (N, P) int64 positions in the flattened h·w of each map.

        Returns:
            (N, P, size) per map, of length 1.
        """
        vectors = []
        for layer, features, chosen in zip(self.layers, maps, places, strict=True):
            flat = features.flatten(2).transpose(1, 2)  # (N, h·w, C)
            picked = flat.gather(1, chosen[..., None].expand(-1, -1, flat.shape[2]))
            vectors.append(F.normalize(layer(picked).float(), dim=2))
        return vectors

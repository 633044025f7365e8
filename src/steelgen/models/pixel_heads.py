"""Ensembles of small pixel classifiers on given features.

The first layer is linear, and so is bilinear enlargement: features pass it at their own resolution, and its outputs are
enlarged. Features are never held at the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MANY_CLASSES = 30
"""Number of classes from which the classifiers are wider (Baranchuk et al. 2022, section 4)."""
_PIXELS = 2**16
"""Pixels of the images that pass the network at once."""


class FeatureMaps(Protocol):
    """A module: images (N, in_channels, H, W) in [-1, 1] → features as maps (N, C, h, w), of one resolution each."""

    stride: int
    """Edges of the images must be multiples of it."""

    def __call__(self, images: Tensor) -> list[Tensor]: ...


class PixelHeads(nn.Module):
    """Perceptrons with two hidden layers, each followed by ReLU and batch norm (Baranchuk et al. 2022, arXiv
    2112.03126).

    Args:
        channels: channels of the features, which are standardized by the buffers `mean` and `deviation`.
        num_classes: classes of the masks.
        count: number of classifiers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, num_classes: int, count: int) -> None:
        super().__init__()
        first, second = (128, 32) if num_classes < _MANY_CLASSES else (256, 128)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.inputs = nn.ModuleList(nn.Linear(channels, first) for _ in range(count))
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.BatchNorm1d(first),
                nn.Linear(first, second),
                nn.ReLU(),
                nn.BatchNorm1d(second),
                nn.Linear(second, num_classes),
            )
            for _ in range(count)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of B pixels for each classifier, (count, B, channels) → logits (count, B, num_classes)."""
        standardized = (features - self.mean) / self.deviation
        parts = zip(self.inputs, self.members, standardized, strict=True)
        return torch.stack([member(first(pixels)) for first, member, pixels in parts])

    def predict_maps(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (N, C, h, w), whose channels add up to `channels` → probabilities (count, N, num_classes, *size)."""
        edges = [part.shape[1] for part in maps]
        predicted = []
        for first, member in zip(self.inputs, self.members, strict=True):
            assert isinstance(first, nn.Linear)
            # Standardization is linear, too.
            weight = first.weight / self.deviation
            hidden = (first.bias - weight @ self.mean)[:, None, None]
            for part, columns in zip(maps, weight.split(edges, dim=1), strict=True):
                small = F.conv2d(part, columns[:, :, None, None])
                hidden = hidden + F.interpolate(small, size, mode="bilinear")
            logits = member(hidden.movedim(1, 3).flatten(0, 2)).unflatten(0, (len(maps[0]), *size))
            predicted.append(logits.movedim(3, 1).softmax(dim=1))
        return torch.stack(predicted)


class FeatureSegmenter(nn.Module):
    """Segments images by an ensemble of pixel classifiers; see `PixelHeads`."""

    def __init__(self, features: FeatureMaps, heads: PixelHeads) -> None:
        super().__init__()
        self.features = features
        self.heads = heads

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) in [-1, 1] → log-probabilities (N, num_classes, H, W), of the mean of the ensemble."""
        return self.predict(images)[:, :-1].clamp(min=1e-12).log()

    def predict(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) in [-1, 1] → (N, num_classes + 1, H, W), class probabilities and the agreement."""
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images, self.features.stride)
        size = (int(padded.shape[2]), int(padded.shape[3]))
        predicted = []
        for part in padded.split(max(1, _PIXELS // (size[0] * size[1]))):
            probabilities = self.heads.predict_maps(self.features(part), size)
            agreement = compute_agreement(probabilities)
            predicted.append(torch.cat([probabilities.mean(dim=0), agreement[:, None]], dim=1))
        return torch.cat(predicted)[..., :height, :width]


def pad_to_multiple(images: Tensor, stride: int) -> Tensor:
    """Pads (N, C, H, W) at the bottom and the right with its border, so that edges are multiples of the stride."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def compute_agreement(probabilities: Tensor) -> Tensor:
    """Computes the agreement of an ensemble, 1 minus its Jensen-Shannon divergence over the largest possible one.

    The divergence of K distributions is the entropy of their mean less their mean entropy (Lin 1991, IEEE Trans. Inf.
    Theory 37, 145), at most the logarithm of K or of the number of classes, whichever is smaller.

    Args:
        probabilities: (K, N, num_classes, H, W), K ≥ 2.

    Returns:
        (N, H, W) in [0, 1]; 1 with a single class.
    """
    largest = math.log(min(probabilities.shape[0], probabilities.shape[2]))
    if largest == 0:
        return torch.ones_like(probabilities[0, :, 0])
    divergence = _compute_entropy(probabilities.mean(dim=0), 1) - _compute_entropy(probabilities, 2).mean(dim=0)
    return (1 - divergence / largest).clamp(0, 1)


def _compute_entropy(probabilities: Tensor, dim: int) -> Tensor:
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=dim)


def sample_maps(maps: Sequence[Tensor], rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Samples features at pixels of the image, as bilinear enlargement of the maps to its size would.

    Args:
        maps: (1, C, h, w) each.
        rows, columns: (P,) pixels of the image.
        size: height and width of the image, in px.

    Returns:
        (P, C), of all maps.
    """
    places = [2 * (at + 0.5) / edge - 1 for at, edge in ((columns, size[1]), (rows, size[0]))]
    grid = torch.stack(places, dim=-1)[None, None].to(maps[0])
    # Like F.interpolate, which repeats the outermost pixels.
    parts = [F.grid_sample(part, grid, padding_mode="border", align_corners=False)[0, :, 0] for part in maps]
    return torch.cat(parts).T

"""What segmenters see in images, with test-time augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from steelgen.config.segmenter import SegmenterSection
from steelgen.data.crops import image_to_tensor
from steelgen.models.pixel_heads import FeatureSegmenter

_PIXELS_ON_CPU, _PIXELS_ON_GPU = 2**16, 2**23
"""Pixels per forward pass; on the CPU, batches that fit the cache are twice as fast."""


@dataclass(frozen=True)
class Averaging:
    """Test-time augmentation."""

    flips: bool = False
    """Average over the 8 flips and quarter turns of an image."""
    scales: tuple[float, ...] = (1.0,)
    """Average over these scale factors."""


ONE_VIEW = Averaging()
"""No test-time augmentation."""


def averaging_of(settings: SegmenterSection) -> Averaging:
    """Returns the test-time augmentation of the settings."""
    return Averaging(settings.flips, tuple(settings.scales))


def predict_probabilities(segmenter: nn.Module, images: torch.Tensor, averaging: Averaging = ONE_VIEW) -> torch.Tensor:
    """Predicts class probabilities, averaged over views: (N, C, S, S) in [-1, 1] → (N, num_classes, S, S)."""
    maps = predict_maps(segmenter, images, averaging)
    return maps[:, :-1] if measures_agreement(segmenter) else maps


def predict_maps(segmenter: nn.Module, images: torch.Tensor, averaging: Averaging = ONE_VIEW) -> torch.Tensor:
    """Predicts class probabilities, and with `measures_agreement` the agreement as the last channel; (N, C, S, S) in
    [-1, 1] → (N, num_classes [+ 1], S, S), averaged over views."""
    symmetries = range(8 if averaging.flips else 1)
    views = [_predict_view(segmenter, images, *view) for view in product(averaging.scales, symmetries)]
    return views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)


def count_batch(device: torch.device, pixels: int) -> int:
    """Returns how many images of so many pixels each a segmenter labels at once."""
    return max(1, (_PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_GPU) // pixels)


def measures_agreement(segmenter: nn.Module) -> bool:
    """Whether the segmenter is an ensemble, whose agreement is its confidence."""
    return isinstance(segmenter, FeatureSegmenter)


def _predict_view(segmenter: nn.Module, images: torch.Tensor, scale: float, symmetry: int) -> torch.Tensor:
    """Predicts on images scaled, rotated by `symmetry % 4` quarter turns, and mirrored if symmetry ≥ 4."""
    shape = images.shape[-2:]
    size = [max(1, round(edge * scale)) for edge in shape]
    x = images if scale == 1 else F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
    x = torch.rot90(x, symmetry % 4, (2, 3))
    x = (x.flip(3) if symmetry >= 4 else x).contiguous(memory_format=torch.channels_last)
    predicted = segmenter.predict(x) if isinstance(segmenter, FeatureSegmenter) else segmenter(x).softmax(dim=1)
    predicted = torch.rot90(predicted.flip(3) if symmetry >= 4 else predicted, -(symmetry % 4), (2, 3))
    return predicted if scale == 1 else F.interpolate(predicted, shape, mode="bilinear")


@torch.inference_mode()
def predict_masks(
    segmenter: nn.Module, images: NDArray[np.uint8], averaging: Averaging = ONE_VIEW
) -> NDArray[np.uint8]:
    """Predicts the most likely class of each pixel.

    Args:
        segmenter: (N, C, S, S) in [-1, 1] → logits (N, num_classes, S, S).
        images: (N, S, S) or (N, S, S, 3) uint8.
        averaging: test-time augmentation.

    Returns:
        (N, S, S) uint8 class indices.
    """
    device = next(segmenter.parameters()).device
    batch_size = count_batch(device, images.shape[1] * images.shape[2])
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.stack([image_to_tensor(image) for image in images[start : start + batch_size]])
        batch = batch.to(device, memory_format=torch.channels_last)
        parts.append(predict_probabilities(segmenter, batch, averaging).argmax(dim=1).to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)

"""Labeling of images of any size in windows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelgen.data.crops import image_to_tensor
from steelgen.evaluation.prediction import ONE_VIEW, Averaging, count_batch, measures_agreement, predict_maps


@torch.inference_mode()
def label_by_windows(
    network: torch.nn.Module,
    image: NDArray[np.uint8],
    image_size: int,
    crop_size: int,
    num_classes: int,
    averaging: Averaging = ONE_VIEW,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels one image of any size by windows with half overlap, blended with smooth weights.

    Args:
        network: (N, C, S, S) in [-1, 1] → logits (N, num_classes, S, S), in eval mode.
        image: (H, W) or (H, W, 3) uint8 with the network's channels.
        image_size: edge S of the windows the network sees, px.
        crop_size: edge of the same windows in the image, px; the image is resized by image_size / crop_size.
        num_classes: classes of the network.
        averaging: test-time augmentation.

    Returns:
        mask: (H, W) uint8 class indices; confidence: (H, W) float32, the probability of that class, or the agreement of
        an ensemble.
    """
    device, size = next(network.parameters()).device, image_size
    height, width = image.shape[:2]
    shrink = image_size / crop_size
    small_shape = max(1, round(height * shrink)), max(1, round(width * shrink))
    tensor = image_to_tensor(image)[None]
    mode = "area" if shrink < 1 else "bicubic"
    small = (F.interpolate(tensor, small_shape, mode=mode).clamp(-1, 1) if shrink != 1 else tensor)[0]
    # Replication, since reflection padding must be smaller than the image.
    padding = max(0, size - small_shape[1]), max(0, size - small_shape[0])
    padded = F.pad(small[None], (0, padding[0], 0, padding[1]), mode="replicate")[0]
    corners = [(top, left) for top in _starts(padded.shape[1], size) for left in _starts(padded.shape[2], size)]
    ramp = torch.sin(torch.pi * (torch.arange(size) + 0.5) / size)
    weight = ramp[:, None] * ramp[None, :]
    # The agreement of an ensemble is averaged over windows like the probabilities.
    total = torch.zeros(num_classes + measures_agreement(network), *padded.shape[1:])
    weights = torch.zeros(padded.shape[1:])
    batch_size = count_batch(device, size**2)
    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        windows = torch.stack([padded[:, top : top + size, left : left + size] for top, left in part])
        predicted = predict_maps(network, windows.to(device), averaging).cpu()
        for (top, left), maps in zip(part, predicted, strict=True):
            total[:, top : top + size, left : left + size] += weight * maps
            weights[top : top + size, left : left + size] += weight
    blended = (total / weights)[:, : small_shape[0], : small_shape[1]]
    if small_shape != (height, width):
        blended = F.interpolate(blended[None], (height, width), mode="bilinear")[0]
    confidence, mask = blended[:num_classes].max(dim=0)
    if measures_agreement(network):
        confidence = blended[num_classes]
    return mask.to(torch.uint8).numpy(), confidence.numpy()


def _starts(length: int, size: int) -> list[int]:
    """Returns window starts, evenly spaced by at most half a window; the last window ends at `length`."""
    count = -(-2 * (length - size) // size) + 1
    return sorted({round(at) for at in np.linspace(0, length - size, count)})

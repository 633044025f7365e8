"""Losses of images and masks that several families share: distance, realness, power spectra, and cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 1e-3
"""Power added before the logarithm, relative to white noise of variance 1: flat images have finite gradients."""


def compute_realness_loss(scores: Tensor, real: bool) -> Tensor:
    """Computes the least-squares loss of patch scores (Mao et al. 2017, arXiv 1611.04076): 1 is real, 0 generated.

    Args:
        scores: (N, h, w).

    Returns:
        (N,) means over the patches.
    """
    return (scores - float(real)).square().mean(dim=(1, 2))


def compute_distance(images: Tensor, targets: Tensor) -> Tensor:
    """Computes the mean absolute difference of images (N, C, H, W), (N,)."""
    return (images - targets).abs().mean(dim=(1, 2, 3))


def compute_log_power(images: Tensor) -> Tensor:
    """Computes the logarithm of the power spectrum of Hann-windowed images without their mean.

    Args:
        images: (N, C, H, W).

    Returns:
        (N, C, H, W // 2 + 1), float32, vertical frequency 0 in row H // 2; 0 is the mean power of white noise with
        variance 1.
    """
    height, width = images.shape[-2:]
    window = torch.outer(
        *(
            torch.hann_window(edge, periodic=False, dtype=torch.float32, device=images.device)
            for edge in (height, width)
        )
    )
    with torch.autocast(images.device.type, enabled=False):
        centered = images.float() - images.float().mean(dim=(2, 3), keepdim=True)
        spectrum = torch.fft.rfft2(centered * window)
        power = torch.view_as_real(spectrum).square().sum(dim=-1) / window.square().sum()
        return torch.fft.fftshift((power + _FLOOR).log(), dim=2)


def compute_pixel_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Computes the cross-entropy of each pixel, in nats, (N, H, W), at least float32; 0 for ignored ones.

    Unlike torch's for images it is deterministic on a GPU.

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64; indices ≥ C are ignored pixels.
        weights: (C,), one per class.
    """
    logs = logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if weights is not None:
        logs = logs * weights[:, None, None]
    classes = torch.arange(logits.shape[1], device=masks.device)[:, None, None]
    return -torch.where(masks[:, None] == classes, logs, 0.0).sum(dim=1)


def compute_cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Computes the mean of `compute_pixel_entropy` over the pixels that are not ignored, (N,); 0 if all are."""
    known = masks < logits.shape[1]
    return compute_pixel_entropy(logits, masks, weights).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)

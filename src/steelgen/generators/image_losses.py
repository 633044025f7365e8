"""Losses of images and masks that several families share: distance, realness, power spectra, and cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def compute_pixel_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Computes the cross-entropy of each pixel, in nats.

    Pixels are rows: on a GPU the loss of images has no deterministic form.

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64, indices < C.

    Returns:
        (N, H, W).
    """
    rows = logits.movedim(1, -1).flatten(0, 2)  # (N·H·W, C)
    return F.cross_entropy(rows, masks.flatten(), reduction="none").view_as(masks)

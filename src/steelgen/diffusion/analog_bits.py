"""Masks as analog bits: class indices in binary, each bit a channel of -1 or 1.

Source: Chen et al. 2022, "Analog Bits" (arXiv 2208.04202), section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 30
"""Maximum rounds of iterative scaling in `tilt_fractions`."""
_MAX_LOG_TILT = 4.0
"""Limit of the change of log odds per pixel: the classes of decided pixels stay."""


def count_bits(num_classes: int) -> int:
    """Returns the number of channels of a mask: ceil(log2 num_classes), at least 1."""
    return max(1, (num_classes - 1).bit_length())


def build_codes(num_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """The codes of all classes, (num_classes, bits) of -1 and 1, least significant bit first."""
    places = torch.arange(count_bits(num_classes), device=device)
    return ((torch.arange(num_classes, device=device)[:, None] >> places) & 1).float() * 2 - 1


def encode_mask(mask: Tensor, num_classes: int) -> Tensor:
    """Encodes class indices (N, H, W) int64 as analog bits (N, bits, H, W) float32; ignored pixels are 0."""
    places = torch.arange(count_bits(num_classes), device=mask.device)
    bits = ((mask[..., None] >> places) & 1).float() * 2 - 1
    return (bits * (mask < num_classes)[..., None]).permute(0, 3, 1, 2)


def decode_mask(bits: Tensor, num_classes: int) -> Tensor:
    """Decodes analog bits (N, bits, H, W) to the class of the nearest code, (N, H, W) int64.

    All codes have the same norm, so the nearest has the largest inner product. If every code stands for a class, this
    is the sign of each bit.
    """
    codes = build_codes(num_classes, bits.device)
    return torch.einsum("nbhw,cb->nchw", bits.float(), codes).argmax(dim=1)


def compute_probabilities(bits: Tensor, num_classes: int) -> Tensor:
    """Class probabilities (N, num_classes, H, W) of expected bits (N, bits, H, W), if bits were independent.

    An expected bit b in [-1, 1] is 1 with probability (1 + b)/2. Codes without a class have probability 0.
    """
    codes = build_codes(num_classes, bits.device)
    up = ((1 + bits.float()) / 2).clamp(1e-6, 1 - 1e-6)
    logs = torch.einsum("nbhw,cb->nchw", up.log(), (1 + codes) / 2)
    logs = logs + torch.einsum("nbhw,cb->nchw", (1 - up).log(), (1 - codes) / 2)
    return logs.softmax(dim=1)


def compute_expected_bits(probabilities: Tensor) -> Tensor:
    """Expected bits (N, bits, H, W) of class probabilities (N, num_classes, H, W)."""
    codes = build_codes(probabilities.shape[1], probabilities.device)
    return torch.einsum("nchw,cb->nbhw", probabilities, codes)


def tilt_fractions(probabilities: Tensor, fractions: Tensor, region: Tensor | None = None) -> Tensor:
    """Changes class probabilities so that the expected phase fractions are those wanted.

    Probabilities are multiplied by one factor per class and image, found by iterative scaling. Of all distributions
    with these fractions this is the closest in Kullback-Leibler divergence (Csiszár 1975, Ann. Probab. 3, 146). Factors
    are limited, so that decided pixels keep their class.

    Args:
        probabilities: (N, num_classes, H, W).
        fractions: (N, num_classes) wanted phase fractions; NaN leaves a class free.
        region: (N, H, W) bool, the pixels that fractions are of; None is all.

    Returns:
        (N, num_classes, H, W); those outside the region mean nothing.
    """
    free = fractions.isnan()
    wanted = fractions.nan_to_num().clamp(1e-6, 1 - 1e-6)
    weights = torch.ones_like(probabilities[:, :1]) if region is None else region[:, None].to(probabilities.dtype)
    weights = weights / weights.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    tilt = torch.zeros_like(wanted)
    tilted = probabilities
    for _ in range(_ROUNDS):
        found = (tilted * weights).sum(dim=(2, 3)).clamp(1e-6, 1 - 1e-6)
        # The log odds of a class alone move its share to the wanted one if probabilities are equal everywhere.
        change = torch.logit(wanted) - torch.logit(found)
        tilt = torch.where(free, 0.0, tilt + change).clamp(-_MAX_LOG_TILT, _MAX_LOG_TILT)
        tilted = probabilities * tilt.exp()[:, :, None, None]
        tilted = tilted / tilted.sum(dim=1, keepdim=True)
    return tilted

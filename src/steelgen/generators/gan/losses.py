"""Adversarial losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_player_losses(real: Tensor, fake: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Computes the losses of the discriminator and the generator.

    Source: non-saturating logistic loss: Goodfellow et al. 2014 (arXiv 1406.2661), section 3; relativistic pairing of
    real and generated images: Jolicoeur-Martineau 2018 (arXiv 1807.00734), as in Huang et al. 2024 (arXiv 2501.05441).

    Args:
        real, fake: (N,) logits of real and generated images.
        objective: "logistic" or "relativistic".

    Returns:
        Discriminator losses and generator losses, (N,) each.
    """
    if objective == "relativistic":
        return F.softplus(fake - real), F.softplus(real - fake)
    return F.softplus(-real) + F.softplus(fake), F.softplus(-fake)


def compute_lead(odds: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Computes r_t of ADA (arXiv 2006.06676, section 3) for real images and a segmentation discriminator.

    The discriminator that minimizes the weighted cross-entropy (OASIS, arXiv 2012.04781, eqs. 1 and 2) gives a real
    pixel of class c the odds weights[c] / weights[-1] against generated if nothing tells them apart. With balanced
    classes, the pixels of a frequent class seem generated, and the sign of their log-odds shows overfitting only if
    this is taken out.

    Args:
        odds: (N, H, W) log-odds of the pixels of real images of being real.
        mask: (N, H, W) int64; indices ≥ num_classes are ignored.
        weights: (num_classes + 1,), of the real classes and of generated pixels.

    Returns:
        (N,) fraction of pixels that seem more real than these odds minus that of the others, in [−1, 1].
    """
    counted = mask < len(weights) - 1
    chance = (weights / weights[-1]).log()[mask.where(counted, 0)]
    return ((odds - chance).sign() * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)


def balance_classes(mask: Tensor, num_classes: int) -> Tensor:
    """Computes weights that give all classes of a batch the same total weight, with mean 1 per pixel (OASIS, eq. 1).

    Args:
        mask: (N, H, W) int64; indices ≥ num_classes are ignored.
        num_classes: classes of the mask.

    Returns:
        (num_classes,); 0 for absent classes.
    """
    counts = (mask[..., None] == torch.arange(num_classes, device=mask.device)).sum(dim=(0, 1, 2)).float()
    present = counts > 0
    return torch.where(present, counts.sum() / (counts.clamp(min=1) * present.sum().clamp(min=1)), 0.0)

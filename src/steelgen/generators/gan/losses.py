"""What two players cost each other: losses a crop, and penalties of the discriminator's gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_player_losses(real: Tensor, fake: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Losses of the discriminator and of the generator.

    Source: logistic, non-saturating: Goodfellow et al. 2014 (arXiv 1406.2661), section 3; relativistic, each real image
    against a generated one: Jolicoeur-Martineau 2018 (arXiv 1807.00734), as in Huang et al. 2024 (arXiv 2501.05441).

    Args:
        real, fake: (N,) logits of real and of generated images.
        objective: "logistic" or "relativistic".

    Returns:
        (N,) each.
    """
    if objective == "relativistic":
        return F.softplus(fake - real), F.softplus(real - fake)
    return F.softplus(-real) + F.softplus(fake), F.softplus(-fake)


def compute_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """‖∇ score‖² for each image, (N,): R1 on real images, R2 on generated ones, each times γ/2.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), eqs. 9 and 10.

    Args:
        scores: (N,), each of one image.
        images: (N, C, H, W) that they were computed from, with gradients.
    """
    (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3))


def compute_segmentation_losses(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each image, its pixels weighted by their classes (OASIS, arXiv 2012.04781, eqs. 1 and 2).

    Args:
        logits: (N, num_classes + 1, H, W).
        mask: (N, H, W) int64; indices from num_classes + 1 on do not count.
        weights: (num_classes + 1,), one a class.

    Returns:
        (N,), means over the pixels that count.
    """
    counted = mask < logits.shape[1]
    target = mask.where(counted, 0)
    losses = F.cross_entropy(logits, target, reduction="none") * weights[target] * counted
    return losses.sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)


def balance_classes(mask: Tensor, num_classes: int) -> Tensor:
    """Weights by which all classes of a batch of masks count alike, and a pixel 1 on average (eq. 1 there).

    Args:
        mask: (N, H, W) int64; indices ≥ num_classes do not count.

    Returns:
        (num_classes,); 0 for classes that are not there.
    """
    counts = (mask[..., None] == torch.arange(num_classes, device=mask.device)).sum(dim=(0, 1, 2)).float()
    present = counts > 0
    return torch.where(present, counts.sum() / (counts.clamp(min=1) * present.sum().clamp(min=1)), 0.0)

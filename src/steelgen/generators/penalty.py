"""Gradient penalty of discriminators."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Computes ‖∇ score‖² per image, (N,): R1 on real images and R2 on generated ones, before the factor γ/2.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), eqs. 9 and 10.

    Args:
        scores: (N,), one per image.
        images: (N, C, H, W) the scores were computed from; requires grad.
    """
    (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3))

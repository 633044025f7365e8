"""The contrastive loss of unpaired image translation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Computes the patchwise contrastive loss (Park et al. 2020, arXiv 2007.15651, eqs. 2 and 3) of one feature map.

    The positive of each query is the key at the same place, the negatives are those at the other places of its image.

    Args:
        queries, keys: (N, P, D) unit vectors of the output and of the input.
        temperature: τ.

    Returns:
        (N,) means over the places.
    """
    logits = queries @ keys.transpose(1, 2) / temperature  # (N, P, P)
    target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(dim=1)

"""Masks that lose more of their pixels the noisier the image is, so that a network leans less on faulty ones.

Source: Ko et al. 2024, "Stochastic conditional diffusion models for robust semantic image synthesis" (SCDM, arXiv
2402.16506): label diffusion with an absorbing state, by its uniform schedule (not the one by class), in training and in
sampling alike. Coarse structure is laid down with little of the mask, whose errors so enter late and small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def draw_lifetimes(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Until which share of the schedule each pixel keeps its class: in [0, 1), (len(seeds), 1, height, width)."""
    rows = [np.random.default_rng((seed, 5)).random((1, height, width), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def absorb_classes(one_hot_mask: Tensor, lifetimes: Tensor, shares: Tensor) -> Tensor:
    """Takes the class from a share of the pixels; what was taken stays so at all larger shares.

    Args:
        one_hot_mask: (N, num_classes, H, W).
        lifetimes: see `draw_lifetimes`.
        shares: (N,) or a scalar in [0, 1]: (t + 1)/T.

    Returns:
        (N, num_classes, H, W); all zeros where the class was taken.
    """
    return one_hot_mask * (lifetimes.to(one_hot_mask.device) >= shares.view(-1, 1, 1, 1))

"""Noise levels of image and mask: timesteps of the schedule, and a clean end."""

from __future__ import annotations

import torch
from torch import Tensor

from steelgen.diffusion.noise import NoiseSchedule

CLEAN = -1
"""The timestep without noise, one before the first of the schedule; the schedule's last is pure noise."""


def embed_time(timesteps: Tensor) -> Tensor:
    """The network's time input of timesteps (N,): 0 for `CLEAN`, T for pure noise."""
    return timesteps + 1


def compute_levels(schedule: NoiseSchedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 − ᾱ_t), each (N, 1, 1, 1), of timesteps (N,) int64; 1 and 0 for `CLEAN`."""
    signal, spread = schedule.compute_levels(timesteps.clamp(min=0))
    clean = (timesteps == CLEAN)[:, None, None, None]
    return torch.where(clean, 1.0, signal), torch.where(clean, 0.0, spread)


def spread_levels(image: tuple[Tensor, Tensor], mask: tuple[Tensor, Tensor], channels: int, bits: int) -> list[Tensor]:
    """Joins the levels of image and mask, (N, 1, 1, 1) each, to those of all channels, (N, channels + bits, 1, 1)."""
    return [
        torch.cat([of_image.expand(-1, channels, -1, -1), of_mask.expand(-1, bits, -1, -1)], dim=1)
        for of_image, of_mask in zip(image, mask, strict=True)
    ]

"""Which noise levels are trained on, where not all alike; see also `LossHistory`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from steelgen.diffusion.noise import NoiseSchedule


class TimestepDistribution(Protocol):
    """Which timesteps are trained on; see `LogNormalTimesteps` and `LossHistory`."""

    def draw(self, fractions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Timesteps (N,) at the quantiles `fractions`, (N,) float64 in [0, 1), on their device, without a wait; and the
        weights (N,) of their losses that keep the expected loss as it is, or None for 1."""
        ...


class EvenTimesteps:
    """All timesteps alike."""

    def __init__(self, num_train_timesteps: int) -> None:
        self._total = num_train_timesteps

    def draw(self, fractions: Tensor) -> tuple[Tensor, None]:
        """See `TimestepDistribution.draw`."""
        return (fractions * self._total).long().clamp(max=self._total - 1), None


class LogNormalTimesteps:
    """Timesteps with ln σ ~ N(mean, std²) (Karras et al. 2022, arXiv 2206.00364, table 1).

    With images of deviation 1 the preconditioning of that paper is v-prediction: c_in·(x + σε) is x_t, its network's
    target −v and its loss weight λ(σ)·c_out² is 1. So this distribution is all that its training adds.
    """

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float) -> None:
        self._mean, self._std = mean, std
        log_sigmas = schedule.log_sigmas
        self._bounds = (log_sigmas[1:] + log_sigmas[:-1]) / 2

    def draw(self, fractions: Tensor) -> tuple[Tensor, None]:
        """The timesteps nearest in ln σ to the quantiles; see `TimestepDistribution.draw`."""
        if self._bounds.device != fractions.device:
            self._bounds = self._bounds.to(fractions.device)
        log_sigmas = self._mean + self._std * torch.special.ndtri(fractions)
        return torch.searchsorted(self._bounds, log_sigmas), None

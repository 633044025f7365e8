"""Which noise levels are trained on, where not all alike; see also `LossHistory`."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from steelgen.diffusion.noise import compute_log_sigmas


class LogNormalTimesteps:
    """Timesteps with ln σ ~ N(mean, std²) (Karras et al. 2022, arXiv 2206.00364, table 1).

    With images of deviation 1 the preconditioning of that paper is v-prediction: c_in·(x + σε) is x_t, its network's
    target −v and its loss weight λ(σ)·c_out² is 1. So this distribution is all that its training adds.
    """

    def __init__(self, schedule: DDPMScheduler, mean: float, std: float) -> None:
        self._mean, self._std = mean, std
        log_sigmas = compute_log_sigmas(schedule)
        self._bounds = (log_sigmas[1:] + log_sigmas[:-1]) / 2

    def draw(self, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """The timesteps nearest in ln σ to the quantiles at fractions (N,) in [0, 1); their weights (N,) are all 1."""
        log_sigmas = self._mean + self._std * torch.special.ndtri(fractions.double())
        return torch.searchsorted(self._bounds, log_sigmas), torch.ones(len(fractions))

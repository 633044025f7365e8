"""Distributions of training timesteps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steelgen.diffusion.noise import NoiseSchedule


class EvenTimesteps:
    """The uniform distribution."""

    def __init__(self, num_train_timesteps: int) -> None:
        self._total = num_train_timesteps

    def draw(self, fractions: Tensor) -> tuple[Tensor, None]:
        """Maps quantiles to timesteps without synchronizing with the device.

        Args:
            fractions: (N,) float64 in [0, 1).

        Returns:
            Timesteps (N,) on the same device, and loss weights (N,) that keep the expected loss; None for all 1.
        """
        return (fractions * self._total).long().clamp(max=self._total - 1), None


class LogNormalTimesteps:
    """Timesteps with ln σ ~ N(mean, std²) (Karras et al. 2022, arXiv 2206.00364, table 1).

    For images of standard deviation 1 the preconditioning of that paper equals v-prediction: c_in·(x + σε) is x_t, its
    network's target is −v and its loss weight λ(σ)·c_out² is 1. Only this distribution is left to add.
    """

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float) -> None:
        self._mean, self._std = mean, std
        log_sigmas = schedule.log_sigmas
        self._bounds = (log_sigmas[1:] + log_sigmas[:-1]) / 2

    def draw(self, fractions: Tensor) -> tuple[Tensor, None]:
        """Returns the timesteps with the nearest ln σ; see `EvenTimesteps.draw`."""
        if self._bounds.device != fractions.device:
            self._bounds = self._bounds.to(fractions.device)
        log_sigmas = self._mean + self._std * torch.special.ndtri(fractions)
        return torch.searchsorted(self._bounds, log_sigmas), None


class LossHistory:
    """The latest losses at every timestep and the distribution that follows from them.

    p(t) ∝ √E[L_t²], mixed with a uniform share, with weights 1/(T·p(t)) that keep the expected loss (Nichol & Dhariwal
    2021, arXiv 2102.09672, eq. 18). Uniform until every timestep has `length` losses. All tensors stay on the device of
    the losses, so that the host never waits.
    """

    def __init__(self, num_timesteps: int, length: int = 10, uniform_share: float = 0.001) -> None:
        self._losses = torch.zeros(num_timesteps, length, dtype=torch.float64)
        """Latest loss last in each row; zeros before the first."""
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64)
        self._uniform_share = uniform_share
        self._pending: list[tuple[Tensor, Tensor]] = []

    def compute_probabilities(self) -> Tensor:
        """p(t), (T,) float64."""
        total, length = self._losses.shape
        moment = self._losses.square().mean(dim=1).sqrt()
        uniform = torch.full_like(moment, 1 / total)
        mixed = (1 - self._uniform_share) * moment / moment.sum() + self._uniform_share * uniform
        return torch.where((self._counts >= length).all() & (moment.sum() > 0), mixed, uniform)

    def draw(self, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """See `EvenTimesteps.draw`."""
        self._move(fractions.device)
        probabilities = self.compute_probabilities()
        cumulative = probabilities.cumsum(dim=0)
        timesteps = torch.searchsorted(cumulative, fractions * cumulative[-1], right=True)
        timesteps = timesteps.clamp(max=len(probabilities) - 1)
        return timesteps, (1 / (len(probabilities) * probabilities[timesteps])).float()

    def record(self, timesteps: Tensor, losses: Tensor) -> None:
        """Queues the unweighted losses (N,) of a batch for `absorb`."""
        self._pending.append((timesteps.detach(), losses.detach().double()))

    def absorb(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Adds the queued losses of all processes, over which `gather` concatenates, so that they stay equal."""
        for timesteps, losses in self._pending:
            self._move(losses.device)
            # One at a time: a timestep may occur twice in a batch.
            for timestep, loss in zip(gather(timesteps).split(1), gather(losses).split(1), strict=True):
                row = torch.cat([self._losses.index_select(0, timestep)[:, 1:], loss[:, None]], dim=1)
                self._losses.index_copy_(0, timestep, row)
                self._counts.index_add_(0, timestep, torch.ones_like(timestep))
        self._pending = []

    def state(self) -> list[list[float]]:
        """The losses of each timestep, for `restore`."""
        length = self._losses.shape[1]
        rows, counts = self._losses.tolist(), self._counts.clamp(max=length).tolist()
        return [row[length - count :] for row, count in zip(rows, counts, strict=True)]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Restores the output of `state`."""
        length = self._losses.shape[1]
        rows = [[*[0.0] * (length - len(row)), *row] for row in state]
        self._losses = torch.tensor(rows, dtype=torch.float64)
        self._counts = torch.tensor([len(row) for row in state])

    def _move(self, device: torch.device) -> None:
        if self._losses.device != device:
            self._losses, self._counts = self._losses.to(device), self._counts.to(device)


TimestepDistribution = EvenTimesteps | LogNormalTimesteps | LossHistory

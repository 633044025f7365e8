"""Drawing the timesteps on which the loss is large more often."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LossHistory:
    """The latest losses at every timestep, and the distribution of timesteps that follows from them.

    p(t) ∝ √E[L_t²], mixed with a uniform share, and weights 1/(T·p(t)) that keep the expected loss as it is
    (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18). Uniform until every timestep has `length` losses. All of it lies
    on the device that the losses come from, so that neither drawing nor recording makes the host wait.
    """

    def __init__(self, num_timesteps: int, length: int = 10, uniform_share: float = 0.001) -> None:
        self._losses = torch.zeros(num_timesteps, length, dtype=torch.float64)
        """The latest at the end of each row, zeros before the first."""
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
        """Timesteps by inverting the distribution; see `TimestepDistribution.draw`."""
        self._move(fractions.device)
        probabilities = self.compute_probabilities()
        cumulative = probabilities.cumsum(dim=0)
        timesteps = torch.searchsorted(cumulative, fractions * cumulative[-1], right=True)
        timesteps = timesteps.clamp(max=len(probabilities) - 1)
        return timesteps, (1 / (len(probabilities) * probabilities[timesteps])).float()

    def record(self, timesteps: Tensor, losses: Tensor) -> None:
        """Notes the unweighted losses (N,) of a batch, for `absorb`."""
        self._pending.append((timesteps.detach(), losses.detach().double()))

    def absorb(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Takes in what was recorded since, from all processes, so that all go on with the same distribution.

        Args:
            gather: concatenates a tensor over the processes.
        """
        for timesteps, losses in self._pending:
            self._move(losses.device)
            # One after the other: a timestep may come twice, and then the later loss pushes out the earlier ones.
            for timestep, loss in zip(gather(timesteps).split(1), gather(losses).split(1), strict=True):
                row = torch.cat([self._losses.index_select(0, timestep)[:, 1:], loss[:, None]], dim=1)
                self._losses.index_copy_(0, timestep, row)
                self._counts.index_add_(0, timestep, torch.ones_like(timestep))
        self._pending = []

    def state(self) -> list[list[float]]:
        """What `restore` takes back, as JSON values."""
        length = self._losses.shape[1]
        rows, counts = self._losses.tolist(), self._counts.clamp(max=length).tolist()
        return [row[length - count :] for row, count in zip(rows, counts, strict=True)]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Goes on from what `state` gave."""
        length = self._losses.shape[1]
        rows = [[*[0.0] * (length - len(row)), *row] for row in state]
        self._losses = torch.tensor(rows, dtype=torch.float64)
        self._counts = torch.tensor([len(row) for row in state])

    def _move(self, device: torch.device) -> None:
        if self._losses.device != device:
            self._losses, self._counts = self._losses.to(device), self._counts.to(device)

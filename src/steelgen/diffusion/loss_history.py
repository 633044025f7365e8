"""Drawing the timesteps on which the loss is large more often."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LossHistory:
    """The latest losses at every timestep, and the distribution of timesteps that follows from them.

    p(t) ∝ √E[L_t²], mixed with a uniform share, and weights 1/(T·p(t)) that keep the expected loss as it is
    (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18). Uniform until every timestep has `length` losses.
    """

    def __init__(self, num_timesteps: int, length: int = 10, uniform_share: float = 0.001) -> None:
        self._losses: list[list[float]] = [[] for _ in range(num_timesteps)]
        self._length = length
        self._uniform_share = uniform_share
        self._pending: list[tuple[Tensor, Tensor]] = []

    def compute_probabilities(self) -> Tensor:
        """p(t), (T,) float64."""
        count = len(self._losses)
        uniform = torch.full((count,), 1 / count, dtype=torch.float64)
        if any(len(losses) < self._length for losses in self._losses):
            return uniform
        moment = torch.tensor(self._losses, dtype=torch.float64).square().mean(dim=1).sqrt()
        if moment.sum() == 0:
            return uniform
        return (1 - self._uniform_share) * moment / moment.sum() + self._uniform_share * uniform

    def draw(self, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps by inverting the distribution at fractions (N,) in [0, 1), and their weights (N,) float32."""
        probabilities = self.compute_probabilities()
        cumulative = probabilities.cumsum(dim=0)
        timesteps = torch.searchsorted(cumulative, fractions.double() * cumulative[-1], right=True)
        timesteps = timesteps.clamp(max=len(probabilities) - 1)
        return timesteps, (1 / (len(probabilities) * probabilities[timesteps])).float()

    def record(self, timesteps: Tensor, losses: Tensor) -> None:
        """Notes the unweighted losses (N,) of a batch, for `absorb`."""
        self._pending.append((timesteps.detach(), losses.detach().float()))

    def absorb(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Takes in what was recorded since, from all processes, so that all go on with the same distribution.

        Args:
            gather: concatenates a tensor over the processes.
        """
        for timesteps, losses in self._pending:
            for timestep, loss in zip(gather(timesteps).tolist(), gather(losses).tolist(), strict=True):
                self._losses[timestep] = [*self._losses[timestep], loss][-self._length :]
        self._pending = []

    def state(self) -> list[list[float]]:
        """What `restore` takes back, as JSON values."""
        return [list(losses) for losses in self._losses]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Goes on from what `state` gave."""
        self._losses = [list(losses) for losses in state]

"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """θ̄ ← θ̄ + (1 − β_t)(θ − θ̄) with β_t = min(decay, (1 + t)/(10 + t)), so that early averages forget the start.

    Args:
        network: the network whose parameters are averaged, in fp32.
        decay: β in the long run.
        warmup: without it, β_t = decay from the first step on.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self._warmup = decay, warmup
        self._live = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self._averages = [parameter.detach().float().clone() for parameter in self._live]

    @property
    def name(self) -> str:
        """Tells this average from others of the same run, in names of files and folders."""
        return f"{self.decay:g}"

    def decay_at(self, step: int) -> float:
        """β of optimizer step number `step` (from 1)."""
        return min(self.decay, (1 + step) / (10 + step)) if self._warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step number `step` (from 1)."""
        live = [parameter.float() for parameter in self._live]
        torch._foreach_lerp_(self._averages, live, 1 - self.decay_at(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network carries the averaged weights."""
        live = [parameter.detach().clone() for parameter in self._live]
        try:
            self._copy_to_network(self._averages)
            yield
        finally:
            self._copy_to_network(live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])

    @torch.no_grad()
    def _copy_to_network(self, tensors: list[Tensor]) -> None:
        for parameter, tensor in zip(self._live, tensors, strict=True):
            parameter.copy_(tensor)

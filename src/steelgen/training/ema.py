"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """θ̄ ← θ̄ + (1 − β_t)(θ − θ̄) with β_t = min(decay, (1 + t)/(10 + t)), so that early averages forget the start.

    Buffers, such as the statistics of batch norms, are not averaged: they are those of the latest step.

    Args:
        network: the network whose parameters are averaged, in fp32.
        decay: β in the long run.
        warmup: without it, β_t = decay from the first step on.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        self._decay, self._warmup = decay, warmup
        self._live = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self._averages = [parameter.detach().float().clone() for parameter in self._live]
        saved = network.state_dict().keys()
        buffers = {name: buffer for name, buffer in network.named_buffers() if name in saved}
        self._buffer_names, self._live_buffers = list(buffers), list(buffers.values())
        self._buffers = [buffer.detach().clone() for buffer in self._live_buffers]

    def decay_at(self, step: int) -> float:
        """β of optimizer step number `step` (from 1)."""
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step number `step` (from 1)."""
        live = [parameter.float() for parameter in self._live]
        torch._foreach_lerp_(self._averages, live, 1 - self.decay_at(step))
        _copy(self._buffers, self._live_buffers)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network carries the averaged weights."""
        carried = [*self._live, *self._live_buffers]
        live = [tensor.detach().clone() for tensor in carried]
        try:
            _copy(carried, [*self._averages, *self._buffers])
            yield
        finally:
            _copy(carried, live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and the buffers by theirs."""
        names = [*self._names, *self._buffer_names]
        return dict(zip(names, [*self._averages, *self._buffers], strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        own = self.state_dict()
        _copy(list(own.values()), [state[name] for name in own])


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)

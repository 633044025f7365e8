"""Phases of a training step: their networks and optimizers, prepared for distributed training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from steelgen.generators import Batch, Phase
from steelgen.training.state import TrainingState


class PhaseNetworks(NamedTuple):
    """The networks of one phase."""

    all: Mapping[str, nn.Module]
    """Networks by name for the loss; the trained ones are wrapped for distributed training."""
    trained: list[nn.Module]
    parameters: list[nn.Parameter]
    """Parameters of the trained networks."""


class PreparedPhases:
    """Wraps the networks and optimizers of a run with accelerate."""

    def __init__(self, state: TrainingState, accelerator: Accelerator) -> None:
        self._networks, self._phases = state.trainable.networks, state.trainable.phases
        prepared = accelerator.prepare(*self._networks.values(), *state.optimizers.values())
        self._wrapped = dict(zip(self._networks, prepared, strict=False))
        self._optimizers = dict(zip(state.optimizers, prepared[len(self._networks) :], strict=True))

    def take(self, batches: Iterator[Batch], count: int) -> Iterable[Batch]:
        """The next `count` micro-batches, the same for all phases of a step; lazy if there is one phase."""
        following = islice(batches, count)
        return following if len(self._phases) == 1 else list(following)

    def due(self, step: int) -> Iterator[Phase]:
        """Phases of the step after step number `step`."""
        return (phase for phase in self._phases if step >= phase.start and step % phase.every == 0)

    def prepare(self, phase: Phase, learning_rate: float) -> tuple[torch.optim.Optimizer, PhaseNetworks]:
        """Freezes the other networks and sets the learning rate of a phase, a factor on `learning_rate`."""
        optimizer = self._optimizers[phase.name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * phase.learning_rate
        freeze_others(self._networks, phase)
        trained = {name: self._wrapped[name] for name in phase.trains}
        parameters = [parameter for name in phase.trains for parameter in self._networks[name].parameters()]
        # Frozen networks stay unwrapped: they have no gradients to reduce.
        return optimizer, PhaseNetworks({**self._networks, **trained}, list(trained.values()), parameters)


def freeze_others(networks: Mapping[str, nn.Module], phase: Phase) -> None:
    """Requires gradients only for the networks that a phase trains; a single network stays as it is."""
    if len(networks) > 1:
        for name, network in networks.items():
            network.requires_grad_(name in phase.trains)

"""Who is trained when: the phases of a step, with their networks and optimizers as several processes need them."""

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
    """By name, for the loss; those that are trained wrapped for several processes."""
    trained: list[nn.Module]
    parameters: list[nn.Parameter]
    """Of those that are trained."""


class Players:
    """Wraps the networks and optimizers of a run for accelerate.

    Args:
        state: what is trained; its optimizers are replaced by wrapped ones.
        accelerator: this process.
    """

    def __init__(self, state: TrainingState, accelerator: Accelerator) -> None:
        trainable = state.trainable
        self._networks, self._phases, self._state = trainable.networks, trainable.phases, state
        names, optimizers = list(self._networks), list(state.optimizers)
        prepared = accelerator.prepare(*self._networks.values(), *state.optimizers.values())
        self._wrapped = dict(zip(names, prepared[: len(names)], strict=True))
        self._optimizers = dict(zip(optimizers, prepared[len(names) :], strict=True))

    def share(self, batches: Iterator[Batch], count: int) -> Iterable[Batch]:
        """The next `count` micro-batches, for each phase of a step alike; where there is one phase, one at a time."""
        following = islice(batches, count)
        return following if len(self._phases) == 1 else list(following)

    def due(self, step: int) -> Iterator[Phase]:
        """The phases of the step that follows on so many."""
        return (phase for phase in self._phases if step % phase.every == 0)

    def prepare(self, phase: Phase, learning_rate: float) -> tuple[torch.optim.Optimizer, PhaseNetworks]:
        """Holds fixed what a phase does not train, and sets its learning rate; see `Phase.learning_rate`."""
        optimizer = self._optimizers[phase.name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * phase.learning_rate
        hold_fixed(self._networks, phase)
        trained = {name: self._wrapped[name] for name in phase.trains}
        parameters = [parameter for name in phase.trains for parameter in self._networks[name].parameters()]
        # The others are called as they are: several processes have no gradients of theirs to bring together.
        return optimizer, PhaseNetworks({**self._networks, **trained}, list(trained.values()), parameters)


def hold_fixed(networks: Mapping[str, nn.Module], phase: Phase) -> None:
    """Takes gradients for the networks that a phase trains alone; where there is one network, it stays as it is."""
    if len(networks) > 1:
        for name, network in networks.items():
            network.requires_grad_(name in phase.trains)

"""What training goes on from: all that changes from step to step, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelgen.config.train import OptimizationSection, RunConfig
from steelgen.generators import Generator, Phase, Trainable, join_networks
from steelgen.training.ema import WeightAverage
from steelgen.training.epochs import EpochTracker
from steelgen.training.power_ema import PowerAverage
from steelgen.training.selection import BestTracker, CopyWatch


@dataclass
class TrainingState:
    """A run in progress; a checkpoint holds all of it."""

    trainable: Trainable
    """With the weights as they are trained."""
    average: WeightAverage
    """The moving average of the weights, used for sampling."""
    power_averages: list[PowerAverage]
    optimizers: dict[str, torch.optim.Optimizer]
    """One a phase."""
    scaler: Any
    """The gradient scaler of fp16, else None."""
    epochs: EpochTracker
    best: BestTracker
    copy_watch: CopyWatch
    step: int = 0
    """Optimizer steps taken."""
    unseen: dict[str, float] | None = None
    """Figures of this step, where it was saved before it was looked at: validated, measured, drawn, logged."""

    @property
    def generator(self) -> Generator:
        """Draws with the weights as they are trained."""
        return self.trainable.generator

    @property
    def network(self) -> nn.Module:
        """All networks as one."""
        return join_networks(self.trainable.networks)

    @property
    def averages(self) -> list[WeightAverage]:
        """All moving averages of the weights."""
        return [self.average, *self.power_averages]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the generator's networks carry the averaged weights, and all run as they are: graphs that
        torch.compile made for training steps would be made anew for other shapes and modes, and soon not at all."""
        networks = list(self.trainable.networks.values())
        compiled = [network._compiled_call_impl for network in networks]
        try:
            for network in networks:
                network._compiled_call_impl = None
            with self.average.applied():
                yield
        finally:
            for network, call in zip(networks, compiled, strict=True):
                network._compiled_call_impl = call

    def progress(self) -> dict[str, Any]:
        """What is neither weights nor moments, as JSON values."""
        return {
            "epochs": self.epochs.state(),
            "best": self.best.state(),
            "copies": self.copy_watch.state(),
            "trainable": self.trainable.state(),
            "unseen": self.unseen,
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Goes on at the state's step from what `progress` gave; what it lacks begins there."""
        if "epochs" in progress:
            self.epochs.restore(progress["epochs"])
        if "best" in progress:
            self.best.restore(progress["best"], self.step)
        else:
            self.best.start_at(self.step)
        if "copies" in progress:
            self.copy_watch.restore(progress["copies"])
        self.unseen = progress.get("unseen")
        # Older checkpoints have the history of losses here.
        self.trainable.restore(progress.get("trainable") or {"loss_history": progress.get("loss_history")})


def build_state(
    config: RunConfig,
    trainable: Trainable,
    scaler: Any,
    epoch_crops: int,
    criterion: str | None,
    is_main: bool = True,
) -> TrainingState:
    """A run before its first step.

    Args:
        trainable: on the device that it is trained on.
        scaler: see `TrainingState.scaler`.
        epoch_crops: crops of an epoch.
        criterion: see `resolve_criterion`.
        is_main: whether this is the process that writes.
    """
    options = config.train
    averaged = join_networks(trainable.networks, trainable.averaged)
    return TrainingState(
        trainable,
        WeightAverage(averaged, options.ema_decay, options.ema_warmup),
        [PowerAverage(averaged, std) for std in options.ema_power_stds],
        {phase.name: _build_optimizer(options, trainable, phase) for phase in trainable.phases},
        scaler,
        EpochTracker(epoch_crops, is_main),
        BestTracker(criterion, config.selection.patience_steps),
        CopyWatch(config.measurement.max_copies, config.measurement.checks),
    )


def _build_optimizer(options: OptimizationSection, trainable: Trainable, phase: Phase) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        join_networks(trainable.networks, phase.trains).parameters(),
        lr=options.learning_rate * phase.learning_rate,
        betas=phase.adam_betas or options.adam_betas,
        weight_decay=options.weight_decay,
        fused=True,
    )

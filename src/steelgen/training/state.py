"""The state of a training run, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelgen.config.train import OptimizationSection, RunConfig
from steelgen.generators import Phase, StoredGenerator, Trainable, join_networks
from steelgen.training.ema import PowerAverage, WeightAverage
from steelgen.training.meter import EpochTracker
from steelgen.training.selection import BestTracker, CopyWatch


@dataclass
class TrainingState:
    """Everything that changes from step to step."""

    trainable: Trainable
    average: WeightAverage
    """The moving average of the weights, used for sampling."""
    power_averages: list[PowerAverage]
    optimizers: dict[str, torch.optim.Optimizer]
    """By phase."""
    scaler: Any
    """The gradient scaler of fp16, or None."""
    epochs: EpochTracker
    best: BestTracker
    copy_watch: CopyWatch
    step: int = 0
    """Optimizer steps taken."""
    unlogged: dict[str, float] | None = None
    """Values to log of this step, if it was saved before it was evaluated and logged."""

    @property
    def generator(self) -> StoredGenerator:
        """The generator, with the weights in training."""
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
        """Inside the block the networks have the averaged weights and run without torch.compile, whose graphs of
        training steps would be recompiled for other shapes and modes."""
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

    def start_at(self, step_crops: int) -> None:
        """Starts another run at the state's step, after steps of `step_crops` crops each."""
        self.epochs.start_at(self.step * step_crops)
        self.best.start_at(self.step)

    def progress(self) -> dict[str, Any]:
        """State besides weights and moments, as JSON values."""
        return {
            "epochs": self.epochs.state(),
            "best": self.best.state(),
            "copies": self.copy_watch.state(),
            "trainable": self.trainable.state(),
            "unseen": self.unlogged,
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Restores the output of `progress`; parts missing in older checkpoints start at the state's step."""
        if "epochs" in progress:
            self.epochs.restore(progress["epochs"])
        if "best" in progress:
            self.best.restore(progress["best"], self.step)
        else:
            self.best.start_at(self.step)
        if "copies" in progress:
            self.copy_watch.restore(progress["copies"])
        self.unlogged = progress.get("unseen")
        # Older checkpoints have the loss history at the top level.
        self.trainable.restore(progress.get("trainable") or {"loss_history": progress.get("loss_history")})


def build_state(
    config: RunConfig, trainable: Trainable, scaler: Any, epoch_crops: int, criterion: str | None, is_main: bool = True
) -> TrainingState:
    """Builds the state before the first step, on the device of the networks; `criterion` as in `resolve_criterion`."""
    options = config.train
    averaged = join_networks(trainable.networks, trainable.averaged)
    return TrainingState(
        trainable,
        WeightAverage(averaged, options.ema_decay, options.ema_warmup),
        [PowerAverage(averaged, std) for std in options.ema_power_stds],
        {phase.name: _build_optimizer(options, trainable, phase) for phase in trainable.phases},
        scaler,
        EpochTracker(epoch_crops, is_main),
        BestTracker(criterion, config.selection.patience_steps, config.selection.min_mask_iou),
        CopyWatch(config.measurement.max_copies, config.measurement.checks),
    )


def _build_optimizer(options: OptimizationSection, trainable: Trainable, phase: Phase) -> torch.optim.Optimizer:
    parameters = join_networks(trainable.networks, phase.trains).parameters()
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],  # the others are frozen by finetune
        lr=options.learning_rate * phase.learning_rate,
        betas=phase.adam_betas or options.adam_betas,
        weight_decay=options.weight_decay,
        fused=True,
    )

"""What training goes on from: all that changes from step to step, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from steelgen.config.train import RunConfig
from steelgen.diffusion.loss_history import LossHistory
from steelgen.generators import Generator
from steelgen.training.ema import WeightAverage
from steelgen.training.epochs import EpochTracker
from steelgen.training.power_ema import PowerAverage
from steelgen.training.selection import BestTracker, CopyWatch


@dataclass
class TrainingState:
    """A run in progress; a checkpoint holds all of it."""

    generator: Generator
    """With the weights as they are trained."""
    averages: list[WeightAverage]
    """Moving averages of the weights; the first is the one that images are drawn with."""
    optimizer: torch.optim.Optimizer
    scaler: Any
    """The gradient scaler of fp16, else None."""
    epochs: EpochTracker
    best: BestTracker
    copy_watch: CopyWatch
    loss_history: LossHistory | None
    """Where timesteps are drawn by it."""
    step: int = 0
    """Optimizer steps taken."""
    unseen: dict[str, float] | None = None
    """Figures of this step, where it was saved before it was looked at: validated, measured, drawn, logged."""

    @property
    def average(self) -> WeightAverage:
        """The average that images are drawn with."""
        return self.averages[0]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the network carries the averaged weights, and runs as it is: graphs that torch.compile made
        for training steps would be made anew for other shapes and modes, and soon not at all."""
        network = self.generator.network
        compiled, network._compiled_call_impl = network._compiled_call_impl, None
        try:
            with self.average.applied():
                yield
        finally:
            network._compiled_call_impl = compiled

    def progress(self) -> dict[str, Any]:
        """What is neither weights nor moments, as JSON values."""
        return {
            "epochs": self.epochs.state(),
            "best": self.best.state(),
            "copies": self.copy_watch.state(),
            "loss_history": self.loss_history.state() if self.loss_history else None,
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
        if self.loss_history and progress.get("loss_history"):
            self.loss_history.restore(progress["loss_history"])


def build_state(
    config: RunConfig,
    generator: Generator,
    scaler: Any,
    epoch_crops: int,
    criterion: str | None,
    is_main: bool = True,
) -> TrainingState:
    """A run before its first step.

    Args:
        generator: on the device that it is trained on.
        scaler: see `TrainingState.scaler`.
        epoch_crops: crops of an epoch.
        criterion: see `resolve_criterion`.
        is_main: whether this is the process that writes.
    """
    options = config.train
    optimizer = torch.optim.AdamW(
        generator.network.parameters(),
        lr=options.learning_rate,
        betas=options.adam_betas,
        weight_decay=options.weight_decay,
        fused=True,
    )
    decays = (options.ema_decay, *options.further_ema_decays)
    averages = [WeightAverage(generator.network, decay, options.ema_warmup) for decay in decays]
    powers = [PowerAverage(generator.network, std) for std in options.ema_power_stds]
    if options.timestep_sampling == "lognormal":
        generator.draw_timesteps_lognormally(options.lognormal_mean, options.lognormal_std)
    return TrainingState(
        generator,
        [*averages, *powers],
        optimizer,
        scaler,
        EpochTracker(epoch_crops, is_main),
        BestTracker(criterion, config.selection.patience_steps),
        CopyWatch(config.measurement.max_copies, config.measurement.checks),
        generator.start_loss_history() if options.timestep_sampling == "loss_second_moment" else None,
    )

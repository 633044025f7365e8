"""Selection of the best step, early stopping and detection of copying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelgen.config.train import RunConfig
from steelgen.errors import InputError

NO_IMPROVEMENT = "patience_steps"
EPOCH_LOSS = "train_epoch_loss"
COPIES = "stop_at_copies"


@dataclass
class BestTracker:
    """Tracks the step with the lowest value of a criterion."""

    criterion: str | None
    """Name of the value; None tracks nothing."""
    patience_steps: int | None
    """Steps without a better value until giving up; None never gives up."""
    min_mask_iou: float = 0.0
    """Steps with a lower mask_iou are not the best."""
    best_value: float | None = None
    best_step: int = 0
    last_step: int = 0

    def offer(self, step: int, values: dict[str, float]) -> bool:
        """Adds the values after a step; returns whether it is the best step so far."""
        if self.criterion is None or self.criterion not in values:
            return False
        value, self.last_step = values[self.criterion], step
        if values.get("mask_iou", self.min_mask_iou) < self.min_mask_iou:
            return False
        if not value < (math.inf if self.best_value is None else self.best_value):  # also for NaN
            return False
        self.best_value, self.best_step = value, step
        return True

    @property
    def out_of_patience(self) -> bool:
        """Whether the best value was patience_steps or more before the latest."""
        return self.patience_steps is not None and self.last_step - self.best_step >= self.patience_steps

    def start_at(self, step: int) -> None:
        """Starts without values at a step that another run has reached."""
        self.best_step = self.last_step = step

    def state(self) -> dict[str, Any]:
        """State as JSON values, for `restore`."""
        return {name: getattr(self, name) for name in ("criterion", "best_value", "best_step", "last_step")}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Restores the output of `state`; starts without values at `step` if its criterion differs."""
        if state["criterion"] != self.criterion:
            self.start_at(step)
            return
        self.best_value, self.best_step, self.last_step = state["best_value"], state["best_step"], state["last_step"]


@dataclass
class CopyWatch:
    """Detects when a generator starts to copy training images."""

    max_copies: float
    """Share of copies above which a measurement counts."""
    checks: int
    """Number of such measurements in a row that count as copying."""
    in_a_row: int = 0
    detected_at: int | None = None
    """Step at which copying was detected."""

    def offer(self, step: int, copies: float) -> bool:
        """Adds the share of copies after a step; returns whether copying is detected for the first time."""
        self.in_a_row = self.in_a_row + 1 if copies > self.max_copies else 0
        if self.in_a_row < self.checks or self.detected_at is not None:
            return False
        self.detected_at = step
        return True

    def state(self) -> dict[str, Any]:
        """State as JSON values, for `restore`."""
        return {"in_a_row": self.in_a_row, "begun_at": self.detected_at}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the output of `state`."""
        self.in_a_row, self.detected_at = state["in_a_row"], state["begun_at"]


def resolve_criterion(config: RunConfig, holds_out: bool, criteria: Sequence[str]) -> str | None:
    """Returns the name of the value that selects best/; None for no best/.

    Args:
        holds_out: whether there are held-out micrographs.
        criteria: see `Trainable.criteria`.

    Raises:
        InputError: if the criterion is never measured, or patience_steps has no criterion.
    """
    criterion, measures = config.selection.criterion, config.measurement.every is not None
    no_split = f"{', '.join(map(str, config.data.folders))}: has no split {config.validation.split!r}"
    if criterion == "auto" and holds_out:
        return next((name for name in criteria if name != "kid" or measures), None)
    if criterion == "auto" and config.selection.patience_steps is not None:
        raise InputError(
            f"{no_split} for validation: selection.patience_steps needs selection.criterion train_epoch_loss"
        )
    if criterion in ("auto", "none"):
        return None
    if criterion not in criteria:
        raise InputError(
            f"selection.criterion {criterion!r}: not applicable to this generator; use {', '.join(criteria)}"
        )
    if criterion != EPOCH_LOSS and not holds_out:
        raise InputError(f"{no_split}, which selection.criterion {criterion!r} needs")
    if criterion == "kid" and not measures:
        raise InputError("selection.criterion 'kid' needs measurement.every")
    return criterion

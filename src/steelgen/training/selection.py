"""The best step so far by a named criterion, when none gets better, and when copying has begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from steelgen.config.train import RunConfig
from steelgen.errors import InputError

NO_IMPROVEMENT = "patience_steps"
"""Why training stopped when nothing got better for long."""
EPOCH_LOSS = "train_epoch_loss"
"""The criterion that is the mean training loss of an epoch."""
COPIES = "stop_at_copies"
"""Why training stopped when the generator began to copy."""


class BestTracker:
    """Which step had the lowest value of a criterion.

    Args:
        criterion: the name of the value; None: there is no best step.
        patience_steps: steps without a better value after which to give up; None: never.
    """

    def __init__(self, criterion: str | None, patience_steps: int | None) -> None:
        self.criterion = criterion
        self._patience_steps = patience_steps
        self.best_value: float | None = None
        self.best_step = 0
        self._last_step = 0

    def offer(self, step: int, values: dict[str, float]) -> bool:
        """Takes in the values after step number `step`; whether it is the best step so far."""
        if self.criterion is None or self.criterion not in values:
            return False
        value, self._last_step = values[self.criterion], step
        if not value < (math.inf if self.best_value is None else self.best_value):  # also where it is NaN
            return False
        self.best_value, self.best_step = value, step
        return True

    @property
    def given_up(self) -> bool:
        """Whether, at the latest value, the best one lay too many steps back."""
        return self._patience_steps is not None and self._last_step - self.best_step >= self._patience_steps

    def start_at(self, step: int) -> None:
        """Begins with nothing known at a step that another run has reached."""
        self.best_step = self._last_step = step

    def state(self) -> dict[str, Any]:
        """What `restore` takes back, as JSON values."""
        return {
            "criterion": self.criterion,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "last_step": self._last_step,
        }

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Goes on from what `state` gave; afresh at `step` if that was of another criterion."""
        if state["criterion"] != self.criterion:
            self.start_at(step)
            return
        self.best_value, self.best_step, self._last_step = state["best_value"], state["best_step"], state["last_step"]


class CopyWatch:
    """Notices when a generator begins to copy.

    Args:
        max_copies: share of copies above which a measurement counts.
        checks: so many of them in a row are the beginning.
    """

    def __init__(self, max_copies: float, checks: int) -> None:
        self._max_copies = max_copies
        self._checks = checks
        self._in_a_row = 0
        self.begun_at: int | None = None
        """The step at which copying began."""

    def offer(self, step: int, copies: float) -> bool:
        """Takes in the share of copies after step number `step`; whether copying has just begun."""
        self._in_a_row = self._in_a_row + 1 if copies > self._max_copies else 0
        if self._in_a_row < self._checks or self.begun_at is not None:
            return False
        self.begun_at = step
        return True

    def state(self) -> dict[str, Any]:
        """What `restore` takes back, as JSON values."""
        return {"in_a_row": self._in_a_row, "begun_at": self.begun_at}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._in_a_row, self.begun_at = state["in_a_row"], state["begun_at"]


def resolve_criterion(config: RunConfig, holds_out: bool, criteria: Sequence[str]) -> str | None:
    """The name of the value by which best/ is chosen; None for no best/.

    Args:
        holds_out: whether there are micrographs to validate on.
        criteria: see `Trainable.criteria`.

    Raises:
        InputError: if the criterion is never measured, or there is none for patience_steps.
    """
    criterion, data = config.selection.criterion, config.data
    if criterion == "auto" and not holds_out and config.selection.patience_steps is not None:
        raise InputError(
            f"{data.dataset}: has no split {config.validation.split!r} to validate on, so selection.patience_steps "
            "needs selection.criterion train_epoch_loss"
        )
    if criterion == "none" or (criterion == "auto" and not holds_out):
        return None
    if criterion == "auto":
        measured = [name for name in criteria if name != "kid" or config.measurement.every is not None]
        return measured[0] if measured else None
    if criterion not in criteria:
        raise InputError(
            f"selection.criterion {criterion!r}: not applicable to this generator; {', '.join(criteria)} are"
        )
    if criterion == EPOCH_LOSS:
        return criterion
    if not holds_out:
        raise InputError(
            f"{data.dataset}: has no split {config.validation.split!r}, which selection.criterion {criterion!r} needs"
        )
    if criterion == "kid" and config.measurement.every is None:
        raise InputError("selection.criterion 'kid' needs measurement.every")
    return criterion

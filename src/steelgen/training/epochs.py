"""The mean training loss of each epoch: which was the best, and when none gets better."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

NO_IMPROVEMENT = "patience_steps"
"""Why training stopped when no epoch got better for long."""


class EpochTracker:
    """Gathers losses into epochs.

    Args:
        epoch_crops: crops of an epoch.
        patience_steps: steps without a better epoch after which to give up; None: never.
    """

    def __init__(self, epoch_crops: int, patience_steps: int | None) -> None:
        self._epoch_crops = epoch_crops
        self._patience_steps = patience_steps
        self._epoch = 0
        self._sum = 0.0
        self._count = 0
        self._pending: list[Tensor] = []
        self.best_loss = math.inf
        self.best_step = 0

    def add(self, losses: Tensor) -> None:
        """Takes in the losses (N,) of a batch of all processes; waits for nothing."""
        self._pending.append(losses.detach().double())

    def close_epoch(self, step: int, crops_used: int) -> float | None:
        """After step number `step`: the mean loss of the epoch that ended with it, or None within an epoch.

        Where it is the lowest so far, `best_step` is `step` afterwards.
        """
        epoch = crops_used // self._epoch_crops
        if epoch == self._epoch:
            return None
        self._settle()
        mean, self._epoch, self._sum, self._count = self._sum / self._count, epoch, 0.0, 0
        if mean < self.best_loss:
            self.best_loss, self.best_step = mean, step
        return mean

    def start_at(self, step: int, crops_used: int) -> None:
        """Begins with nothing known at a step that another run has reached."""
        self._epoch, self.best_step = crops_used // self._epoch_crops, step

    def given_up(self, step: int) -> bool:
        """Whether the best epoch lies too many steps back."""
        return self._patience_steps is not None and step - self.best_step >= self._patience_steps

    def state(self) -> dict[str, Any]:
        """What `restore` takes back, as JSON values."""
        self._settle()
        best = None if math.isinf(self.best_loss) else self.best_loss
        return {
            "epoch": self._epoch,
            "sum": self._sum,
            "count": self._count,
            "best_loss": best,
            "best_step": self.best_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._epoch, self._sum, self._count = state["epoch"], state["sum"], state["count"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.best_step = state["best_step"]

    def _settle(self) -> None:
        # Batch by batch, so that the sum does not depend on when it was asked for, bit by bit.
        for losses in self._pending:
            self._sum += float(losses.sum())
            self._count += len(losses)
        self._pending = []

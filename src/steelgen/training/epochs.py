"""The mean training loss of each epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class EpochTracker:
    """Gathers losses into epochs of `epoch_crops` crops."""

    def __init__(self, epoch_crops: int) -> None:
        self._epoch_crops = epoch_crops
        self._epoch = 0
        self._sum = 0.0
        self._count = 0
        self._pending: list[Tensor] = []

    def add(self, losses: Tensor) -> None:
        """Takes in the losses (N,) of a batch of all processes; waits for nothing."""
        self._pending.append(losses.detach().double())

    def close_epoch(self, crops_used: int) -> float | None:
        """The mean loss of an epoch that has ended with the crops used up to now, or None within an epoch."""
        epoch = crops_used // self._epoch_crops
        if epoch == self._epoch:
            return None
        self._settle()
        mean, self._epoch, self._sum, self._count = self._sum / self._count, epoch, 0.0, 0
        return mean

    def start_at(self, crops_used: int) -> None:
        """Begins with nothing known where another run has come to."""
        self._epoch = crops_used // self._epoch_crops

    def state(self) -> dict[str, Any]:
        """What `restore` takes back, as JSON values."""
        self._settle()
        return {"epoch": self._epoch, "sum": self._sum, "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._epoch, self._sum, self._count = state["epoch"], state["sum"], state["count"]

    def _settle(self) -> None:
        # Batch by batch, so that the sum does not depend on when it was asked for, bit by bit.
        for losses in self._pending:
            self._sum += float(losses.sum())
            self._count += len(losses)
        self._pending = []

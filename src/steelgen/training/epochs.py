"""The mean training loss of each epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steelgen.generators import Gather


class EpochTracker:
    """Sums this process's losses by epochs of `epoch_crops` crops, on their device; reading them alone makes it wait.

    Args:
        epoch_crops: crops of an epoch, of all processes.
        is_main: whether this process goes on with what a checkpoint holds; the others then begin with nothing.
    """

    def __init__(self, epoch_crops: int, is_main: bool = True) -> None:
        self._epoch_crops = epoch_crops
        self._is_main = is_main
        self._epoch = 0
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._closed: list[tuple[int, Tensor]] = []
        """The last step of each epoch that has ended, and [sum, count]."""

    def add(self, losses: Tensor) -> None:
        """Takes in the losses (N,) of a batch of this process; waits for nothing."""
        self._sum = self._sum.to(losses.device) + losses.detach().double().sum()
        self._count += len(losses)

    def end_step(self, step: int, crops_used: int) -> bool:
        """Whether an epoch has ended with optimizer step number `step`, after so many crops of all processes."""
        epoch = crops_used // self._epoch_crops
        if epoch == self._epoch:
            return False
        self._closed.append((step, self._pair()))
        self._epoch, self._sum, self._count = epoch, torch.zeros_like(self._sum), 0
        return True

    def read(self, gather: Gather) -> dict[int, float]:
        """The mean losses, over all processes, of the epochs that have ended since the last reading, by last step."""
        if not self._closed:
            return {}
        steps, pairs = zip(*self._closed, strict=True)
        self._closed = []
        totals = gather(torch.stack(pairs)[None]).sum(dim=0).tolist()
        return {step: total / count for step, (total, count) in zip(steps, totals, strict=True)}

    def start_at(self, crops_used: int) -> None:
        """Begins with nothing known where another run has come to."""
        self._epoch = crops_used // self._epoch_crops

    def settle(self, gather: Gather) -> None:
        """Brings what all processes know together in the main one, whose `state` then has all of it."""
        total = gather(self._pair()[None]).sum(dim=0)
        self._sum = total[0] if self._is_main else torch.zeros_like(total[0])
        self._count = int(total[1]) if self._is_main else 0

    def state(self) -> dict[str, Any]:
        """What `restore` takes back, as JSON values."""
        return {"epoch": self._epoch, "sum": float(self._sum), "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._epoch = state["epoch"]
        if self._is_main:
            self._sum, self._count = torch.tensor(state["sum"], dtype=torch.float64), state["count"]

    def _pair(self) -> Tensor:
        return torch.stack([self._sum, torch.full_like(self._sum, self._count)])

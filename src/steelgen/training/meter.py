"""What is measured while training runs, and when it has gone wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from steelgen.data.crops import CropDataset
from steelgen.diffusion.loss import CropLosses
from steelgen.errors import InputError
from steelgen.training.validation import average_by_bin

MAX_LOSS = 1e4
"""A crop's loss beyond this counts as exploded; untrained networks have one of about 1."""


class LossMeter:
    """Losses, gradient norm and speed since the last reading.

    Args:
        dataset: to name the micrographs of a batch that went wrong.
        bins: equal parts of the noise schedule that the loss is told by.
    """

    def __init__(self, dataset: CropDataset, bins: int) -> None:
        self._dataset = dataset
        self._bins = bins
        self._losses: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._numbers: list[Tensor] = []
        self._steps: list[int] = []
        self._since = time.perf_counter()

    def add(self, step: int, numbers: Tensor, found: CropLosses) -> None:
        """Takes in the losses of the crops `numbers` (N,) of optimizer step number `step`; waits for nothing."""
        self._losses.append(found.losses.detach())
        self._positions.append(found.positions)
        self._numbers.append(numbers)
        self._steps.append(step)

    def check(self, last_checkpoint: Path | None) -> None:
        """Looks at the losses since the last reading.

        Raises:
            InputError: if one is not finite or above MAX_LOSS; the step, the micrographs of that batch and the
                checkpoint to go back to are named.
        """
        if not self._losses or bool((torch.cat(self._losses).abs() <= MAX_LOSS).all()):  # False for NaN too
            return
        for step, numbers, losses in zip(self._steps, self._numbers, self._losses, strict=True):
            if bool((losses.abs() <= MAX_LOSS).all()):
                continue
            stems = self._dataset.micrographs.stems
            names = sorted({stems[self._dataset.micrograph_index(int(number))] for number in numbers})
            saved = (
                f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
            )
            raise InputError(
                f"step {step}: the loss is {losses.max().item():g} in a batch from {', '.join(names)}; lower "
                f"train.learning_rate, raise train.warmup_steps or use mixed_precision bf16 or no; {saved}"
            )

    def read(self, grad_norm: Tensor, learning_rate: float, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The figures since the last reading, over all processes; starts a new one.

        Args:
            gather: concatenates a tensor over the processes, all of which must read.
        """
        losses, positions = (gather(torch.cat(kept).float()).cpu() for kept in (self._losses, self._positions))
        now = time.perf_counter()
        values = {
            "loss": losses.mean().item(),
            "grad_norm": float(grad_norm),
            "learning_rate": learning_rate,
            "images_per_second": len(losses) / (now - self._since),
            **average_by_bin("loss", losses, positions, self._bins),
        }
        self._losses, self._positions, self._numbers, self._steps, self._since = [], [], [], [], now
        return values

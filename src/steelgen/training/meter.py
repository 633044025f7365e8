"""Loss metering, per log line and per epoch, and divergence detection."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steelgen.data.crops import CropDataset
from steelgen.errors import InputError
from steelgen.generators import Gather, Losses

MAX_LOSS = 1e4
"""Larger losses of a crop count as divergence; untrained networks have a loss of about 1."""


class _Entry(NamedTuple):
    step: int
    phase: str
    numbers: Tensor
    found: Losses


class LossMeter:
    """Losses, gradient norms and speed since the last reading.

    Args:
        dataset: names the micrographs of a batch that diverged.
        phases: names of the phases; with several, values are called <name>_<phase>.
        bins: equal parts of the noise schedule for `loss_bin_<k>`.
    """

    def __init__(self, dataset: CropDataset, phases: Sequence[str], bins: int) -> None:
        self._dataset = dataset
        self._suffixes = {phase: f"_{phase}" if len(phases) > 1 else "" for phase in phases}
        self._bins = bins
        self._clear()

    def add(self, step: int, phase: str, numbers: Tensor, found: Losses) -> None:
        """Adds the losses of crops `numbers` (N,) in a phase of optimizer step `step`, without synchronizing."""
        parts = {name: values.detach() for name, values in found.parts.items()}
        self._entries.append(_Entry(step, phase, numbers, Losses(found.losses.detach(), found.positions, parts)))

    def check(self, last_checkpoint: Path | None) -> None:
        """Checks the losses since the last reading for divergence.

        Raises:
            InputError: if one is not finite or above MAX_LOSS; names the step, the micrographs of the batch and the
                checkpoint to return to.
        """
        every = [entry.found.losses for entry in self._entries]
        if not every or bool((torch.cat(every).abs() <= MAX_LOSS).all()):  # False for NaN too
            return
        for step, _, numbers, found in self._entries:
            if bool((found.losses.abs() <= MAX_LOSS).all()):
                continue
            stems = self._dataset.micrographs.stems
            names = sorted({stems[self._dataset.micrograph_index(int(number))] for number in numbers})
            saved = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "no checkpoint was saved"
            raise InputError(
                f"step {step}: the loss is {found.losses.max().item():g} in a batch from {', '.join(names)}; lower "
                f"train.learning_rate, raise train.warmup_steps or use mixed_precision bf16 or no; {saved}"
            )

    def read(self, learning_rate: float, gather: Gather) -> dict[str, float]:
        """Returns the values since the last reading over all processes, each of which must call it, and resets."""
        now = time.perf_counter()
        values: dict[str, float] = {}
        crops = 0
        for phase, suffix in self._suffixes.items():
            own = [entry.found for entry in self._entries if entry.phase == phase]
            if not own:  # a phase that does not run in every step
                continue
            losses = gather(torch.cat([found.losses for found in own]).float()).cpu()
            crops = crops or len(losses)
            values[f"loss{suffix}"] = losses.mean().item()
            values[f"grad_norm{suffix}"] = float(self.norms[phase])
            positions = [found.positions for found in own if found.positions is not None]
            if positions:
                gathered = gather(torch.cat(positions).float()).cpu()
                values |= average_by_bin(f"loss{suffix}", losses, gathered, self._bins)
        values |= {"learning_rate": learning_rate, "images_per_second": crops / (now - self._since)}
        every = [entry.found.parts for entry in self._entries]
        for name in dict.fromkeys(name for parts in every for name in parts):
            part = torch.cat([parts[name] for parts in every if name in parts])
            values[name] = gather(part.float()).mean().item()
        self._clear()
        return values

    def _clear(self) -> None:
        self._entries: list[_Entry] = []
        self.norms: dict[str, Tensor] = {}
        """The latest gradient norm of each phase."""
        self._since = time.perf_counter()


def average_by_bin(name: str, losses: Tensor, positions: Tensor, bins: int) -> dict[str, float]:
    """Mean losses (N,) in equal parts of the noise schedule, as `<name>_bin_<k>` without empty ones.

    Args:
        positions: (N,) in [0, 1); see `Losses`.
    """
    numbers = (positions * bins).long().clamp(max=bins - 1)
    return {
        f"{name}_bin_{number}": losses[numbers == number].double().mean().item()
        for number in range(bins)
        if (numbers == number).any()
    }


class EpochTracker:
    """Sums this process's losses per epoch of `epoch_crops` crops on their device; only reading waits for it.

    Args:
        epoch_crops: crops of all processes in an epoch.
        is_main: whether this process takes the sums of a checkpoint; the others start from zero.
    """

    def __init__(self, epoch_crops: int, is_main: bool = True) -> None:
        self._epoch_crops = epoch_crops
        self._is_main = is_main
        self._epoch = 0
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._closed: list[tuple[int, Tensor]] = []
        """Last step and [sum, count] of each finished epoch."""

    def add(self, losses: Tensor) -> None:
        """Adds the losses (N,) of a batch of this process, without synchronizing."""
        self._sum = self._sum.to(losses.device) + losses.detach().double().sum()
        self._count += len(losses)

    def end_step(self, step: int, crops_used: int) -> bool:
        """Whether an epoch ended with optimizer step number `step`, after `crops_used` crops of all processes."""
        epoch = crops_used // self._epoch_crops
        if epoch == self._epoch:
            return False
        self._closed.append((step, self._pair()))
        self._epoch, self._sum, self._count = epoch, torch.zeros_like(self._sum), 0
        return True

    def read(self, gather: Gather) -> dict[int, float]:
        """Mean losses over all processes of the epochs that ended since the last call, by last step."""
        if not self._closed:
            return {}
        steps, pairs = zip(*self._closed, strict=True)
        self._closed = []
        totals = gather(torch.stack(pairs)[None]).sum(dim=0).tolist()
        return {step: total / count for step, (total, count) in zip(steps, totals, strict=True)}

    def start_at(self, crops_used: int) -> None:
        """Starts without losses after the crops of another run."""
        self._epoch = crops_used // self._epoch_crops

    def collect(self, gather: Gather) -> None:
        """Moves the sums of all processes into the main one, so that its `state` is complete."""
        total = gather(self._pair()[None]).sum(dim=0)
        self._sum = total[0] if self._is_main else torch.zeros_like(total[0])
        self._count = int(total[1]) if self._is_main else 0

    def state(self) -> dict[str, Any]:
        """State as JSON values, for `restore`."""
        return {"epoch": self._epoch, "sum": float(self._sum), "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the output of `state`."""
        self._epoch = state["epoch"]
        if self._is_main:
            self._sum, self._count = torch.tensor(state["sum"], dtype=torch.float64), state["count"]

    def _pair(self) -> Tensor:
        return torch.stack([self._sum, torch.full_like(self._sum, self._count)])

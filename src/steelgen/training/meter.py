"""What is measured while training runs, and when it has gone wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steelgen.data.crops import CropDataset
from steelgen.errors import InputError
from steelgen.generators import Gather, Losses
from steelgen.training.validation import average_by_bin

MAX_LOSS = 1e4
"""A crop's loss beyond this counts as exploded; untrained networks have one of about 1."""


class LossMeter:
    """Losses, gradient norms and speed since the last reading.

    Args:
        dataset: to name the micrographs of a batch that went wrong.
        phases: names of the phases; of several, figures are called <figure>_<phase>.
        bins: equal parts of the noise schedule that losses are told by, where they have a place in one.
    """

    def __init__(self, dataset: CropDataset, phases: Sequence[str], bins: int) -> None:
        self._dataset = dataset
        self._suffixes = {phase: f"_{phase}" if len(phases) > 1 else "" for phase in phases}
        self._bins = bins
        self._clear()

    def add(self, step: int, phase: str, numbers: Tensor, found: Losses) -> None:
        """Takes in the losses of the crops `numbers` (N,) in a phase of optimizer step `step`; waits for nothing."""
        self._entries.append(_Entry(step, phase, numbers, found.losses.detach()))
        if found.positions is not None:
            self._positions[phase].append(found.positions)
        for name, values in found.parts.items():
            self._parts.setdefault(name, []).append(values.detach())

    def note_norm(self, phase: str, grad_norm: Tensor) -> None:
        """Takes in the norm of a phase's gradients, of which the latest is read."""
        self._norms[phase] = grad_norm

    def check(self, last_checkpoint: Path | None) -> None:
        """Looks at the losses since the last reading.

        Raises:
            InputError: if one is not finite or above MAX_LOSS; the step, the micrographs of that batch and the
                checkpoint to go back to are named.
        """
        every = [entry.losses for entry in self._entries]
        if not every or bool((torch.cat(every).abs() <= MAX_LOSS).all()):  # False for NaN too
            return
        for step, _, numbers, losses in self._entries:
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

    def read(self, learning_rate: float, gather: Gather) -> dict[str, float]:
        """The figures since the last reading, over all processes, all of which must read; starts a new one."""
        now = time.perf_counter()
        values: dict[str, float] = {}
        crops = 0
        for phase, suffix in self._suffixes.items():
            own = [entry.losses for entry in self._entries if entry.phase == phase]
            if not own:  # of a phase that is not taken in every step
                continue
            losses = gather(torch.cat(own).float()).cpu()
            crops = crops or len(losses)
            values[f"loss{suffix}"] = losses.mean().item()
            values[f"grad_norm{suffix}"] = float(self._norms[phase])
            if self._positions[phase]:
                positions = gather(torch.cat(self._positions[phase]).float()).cpu()
                values |= average_by_bin(f"loss{suffix}", losses, positions, self._bins)
        parts = {name: gather(torch.cat(kept).float()).mean().item() for name, kept in self._parts.items()}
        values |= {"learning_rate": learning_rate, "images_per_second": crops / (now - self._since), **parts}
        self._clear()
        return values

    def _clear(self) -> None:
        self._entries: list[_Entry] = []
        self._positions: dict[str, list[Tensor]] = {phase: [] for phase in self._suffixes}
        self._parts: dict[str, list[Tensor]] = {}
        self._norms: dict[str, Tensor] = {}
        self._since = time.perf_counter()


class _Entry(NamedTuple):
    step: int
    phase: str
    numbers: Tensor
    losses: Tensor

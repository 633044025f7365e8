"""Display of training progress: a bar in a terminal, lines in a log, nothing in processes other than the first."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steelgen.cli.output import log

if TYPE_CHECKING:
    from steelgen.config.train import RunConfig
    from steelgen.training.observer import TrainingResult

_SPEED = "images_per_second"
_LINE_INTERVAL_S = 10


def run_training(
    config: RunConfig, resume: bool, allow_changed: Sequence[str] = (), quiet: bool = False
) -> TrainingResult:
    """Trains or fine-tunes, depending on the type of the config, and shows the progress unless `quiet`."""
    from steelgen.config.train import FinetuneConfig, TrainConfig
    from steelgen.training.loop import finetune, train

    observer = _SilentObserver()
    if not quiet and is_main_process():
        observer = (_BarObserver if sys.stderr.isatty() else _LineObserver)(config.train.max_minutes)
    try:
        if isinstance(config, TrainConfig):
            return train(config, observer, resume, allow_changed)
        assert isinstance(config, FinetuneConfig)
        return finetune(config, observer, resume, allow_changed)
    finally:
        observer.close()


def is_main_process() -> bool:
    """Returns whether this is the first or only process of a training run."""
    return os.environ.get("RANK", "0") == "0"


class _SilentObserver:
    def on_start(self, first_step: int, last_step: int) -> None:
        pass

    def on_step(self, step: int, values: dict[str, float]) -> None:
        pass

    def on_event(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class _LineObserver(_SilentObserver):
    """Prints a line every few seconds, for logs; `max_minutes` caps the estimated time left."""

    def __init__(self, max_minutes: float | None) -> None:
        self._max_seconds = 60 * max_minutes if max_minutes else float("inf")

    def on_start(self, first_step: int, last_step: int) -> None:
        self._first, self._last = first_step, last_step
        self._start = self._last_line = time.monotonic()

    def on_step(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        # A step that is saved but not logged may come with the epoch's loss alone.
        if _SPEED in values and (now - self._last_line >= _LINE_INTERVAL_S or step == self._last):
            self._last_line = now
            log(f"step {step}/{self._last}  {self._describe(step, values)}")

    def on_event(self, message: str) -> None:
        log(message)

    def _describe(self, step: int, values: dict[str, float]) -> str:
        elapsed = time.monotonic() - self._start
        remaining = min(elapsed / (step - self._first) * (self._last - step), self._max_seconds - elapsed)
        phases = (name for name in values if name.split("_")[0] == "loss" and "_bin_" not in name)
        losses = "".join(f"{name.replace('_', ' ')} {values[name]:.4f}  " for name in phases)
        return f"{losses}{values[_SPEED]:.1f} images/s  {max(remaining, 0) / 60:.1f} min left"


class _BarObserver(_LineObserver):
    """Shows a progress bar with the time remaining."""

    def __init__(self, max_minutes: float | None) -> None:
        from rich import progress as bars
        from rich.console import Console

        super().__init__(max_minutes)
        columns = (bars.TextColumn("training"), bars.BarColumn(bar_width=12), bars.MofNCompleteColumn())
        values = (bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[values]}"))
        self._progress = bars.Progress(*columns, *values, console=Console(stderr=True))

    def on_start(self, first_step: int, last_step: int) -> None:
        super().on_start(first_step, last_step)
        self._task = self._progress.add_task("training", total=last_step, completed=first_step, values="")
        self._progress.start()

    def on_step(self, step: int, values: dict[str, float]) -> None:
        self._progress.update(self._task, completed=step)
        if _SPEED in values:
            self._progress.update(self._task, values=self._describe(step, values))

    def on_event(self, message: str) -> None:
        self._progress.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()

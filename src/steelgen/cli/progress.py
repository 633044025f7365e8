"""How training is shown: a progress bar in a terminal, lines in a log, nothing in any process but the first."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from steelgen.config.train import RunConfig
    from steelgen.training.observer import TrainingResult

_LINE_EVERY_S = 10


def run_training(
    config: RunConfig, resume: bool, allow_changed: Sequence[str] = (), quiet: bool = False
) -> TrainingResult:
    """Trains or fine-tunes, by the kind of the config, and shows how it goes unless it is to be quiet."""
    from steelgen.config.train import TrainConfig
    from steelgen.training.loop import finetune, train

    run: Any = train if isinstance(config, TrainConfig) else finetune
    with watch_training(config.train.max_minutes, quiet) as observer:
        return run(config, observer, resume, allow_changed)


@contextmanager
def watch_training(max_minutes: float | None = None, quiet: bool = False) -> Iterator[Any]:
    """Yields a `TrainingObserver`.

    Args:
        max_minutes: the run's limit, which the time remaining must not exceed.
        quiet: nothing is shown.
    """
    if quiet or not is_main_process():
        yield _SilentObserver()
    elif not sys.stderr.isatty():
        yield _LineObserver(max_minutes)
    else:
        observer = _BarObserver(max_minutes)
        try:
            yield observer
        finally:
            observer.close()


def is_main_process() -> bool:
    """Whether this is the only process of a training run, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


class _SilentObserver:
    """For all processes but the first, and for quiet runs."""

    def on_start(self, first_step: int, last_step: int) -> None:
        pass

    def on_step(self, step: int, values: dict[str, float]) -> None:
        pass

    def on_event(self, message: str) -> None:
        pass


class _TimingObserver(_SilentObserver):
    """Knows how long there is to go, by steps or by the clock."""

    def __init__(self, max_minutes: float | None) -> None:
        self._max_seconds = 60 * max_minutes if max_minutes else float("inf")

    def on_start(self, first_step: int, last_step: int) -> None:
        self._first, self._last = first_step, last_step
        self._begun = self._told = time.monotonic()

    def _describe(self, step: int, values: dict[str, float]) -> str:
        elapsed = time.monotonic() - self._begun
        remaining = min(elapsed / (step - self._first) * (self._last - step), self._max_seconds - elapsed)
        phases = (name for name in values if name.split("_")[0] == "loss" and "_bin_" not in name)
        losses = "".join(f"{name.replace('_', ' ')} {values[name]:.4f}  " for name in phases)
        return f"{losses}{values['images_per_second']:.1f} images/s  {max(remaining, 0) / 60:.1f} min left"


class _LineObserver(_TimingObserver):
    """A line now and then, for logs."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if values and (now - self._told >= _LINE_EVERY_S or step == self._last):
            self._told = now
            typer.echo(f"step {step}/{self._last}  {self._describe(step, values)}", err=True)

    def on_event(self, message: str) -> None:
        typer.echo(message, err=True)


class _BarObserver(_TimingObserver):
    """A progress bar with the time remaining."""

    def __init__(self, max_minutes: float | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(max_minutes)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[values]}"),
            console=Console(stderr=True),
        )

    def on_start(self, first_step: int, last_step: int) -> None:
        super().on_start(first_step, last_step)
        self._task = self._progress.add_task("training", total=last_step, completed=first_step, values="")
        self._progress.start()

    def on_step(self, step: int, values: dict[str, float]) -> None:
        if values:
            self._progress.update(self._task, completed=step, values=self._describe(step, values))
        else:
            self._progress.update(self._task, completed=step)

    def on_event(self, message: str) -> None:
        self._progress.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """Gives the terminal back."""
        self._progress.stop()

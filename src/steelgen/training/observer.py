"""What the outside sees of training: events while it runs, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TrainingObserver(Protocol):
    """Is told how training goes; the command line shows a progress bar."""

    def on_start(self, first_step: int, last_step: int) -> None:
        """Called once, before the first step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Called after each step; `values` is empty between log lines."""

    def on_event(self, message: str) -> None:
        """Called when a checkpoint or a preview was written."""


@dataclass(frozen=True)
class TrainingResult:
    """How training ended."""

    global_step: int
    stopped_by: str
    """"max_steps" (also where max_epochs come first), "max_minutes", "patience_steps", "stop_at_copies" or a signal's
    name."""
    export: Path | None
    """The exported generator; None where a signal cut training short."""

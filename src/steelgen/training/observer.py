"""Interface for progress reports of training, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TrainingObserver(Protocol):
    """Receives the progress of training."""

    def on_start(self, first_step: int, last_step: int) -> None:
        """Called once, before the first step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Called after each step; `values` is empty between log lines."""

    def on_event(self, message: str) -> None:
        """Called with a line for the user, such as a saved checkpoint."""


@dataclass(frozen=True)
class TrainingResult:
    """How training ended."""

    global_step: int
    stopped_by: str
    """"max_steps" (also for max_epochs), "max_minutes", "patience_steps", "stop_at_copies" or the name of a signal."""
    export: Path | None
    """The exported generator; None if a signal stopped training."""

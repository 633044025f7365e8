"""When training ends: steps, epochs, minutes, or a signal."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

OUT_OF_TIME = "max_minutes"


class StopRequest:
    """Inside the block SIGINT, SIGTERM and SIGUSR1 set a flag, looked at between steps; a second SIGINT interrupts.

    Args:
        max_minutes: also ask for a stop after so many minutes; None never does.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.signal_number = 0
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def out_of_time(self) -> bool:
        """Whether max_minutes have passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

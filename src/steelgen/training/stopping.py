"""Stop requests: signals and the time limit."""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

from steelgen.runs import OUT_OF_TIME

_AGREE_EVERY = 8
"""Steps between stop checks of several processes, each of which waits for the device."""


class StopRequest:
    """Inside the block SIGINT, SIGTERM and SIGUSR1 set a flag, read between steps; a second SIGINT interrupts.

    Args:
        max_minutes: minutes until a stop is requested; None sets no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.signal_number = 0
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
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


def agree_on_stop(request: StopRequest, accelerator: Accelerator, step: int) -> str | None:
    """Returns the reason to stop after this step, the same in all processes; None to continue."""
    asked = [request.signal_number, int(request.out_of_time)]
    if accelerator.num_processes > 1:
        if step % _AGREE_EVERY:
            return None
        asked = accelerator.gather(torch.tensor([asked], device=accelerator.device)).amax(dim=0).tolist()
    if asked[0]:
        return signal.Signals(asked[0]).name
    return OUT_OF_TIME if asked[1] else None

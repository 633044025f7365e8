"""What goes on beside drawing: masks are made in processes, pairs judged and written in threads."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from steelgen.devices import usable_cores
from steelgen.errors import InputError
from steelgen.sampling.masks import MaskSource, SourceMask

_MAX_WORKERS = 8


@dataclass
class Candidate:
    """One attempt at one image."""

    image: int
    number: int
    """Its place in the endless sequence of masks and seeds."""
    drawn: SourceMask
    dropped: Counter[str] = field(default_factory=Counter)
    """Why the attempts before it were dropped."""


class _Masks(Dataset):
    def __init__(self, source: MaskSource) -> None:
        self._source = source

    def __getitem__(self, index: int) -> SourceMask | InputError:
        try:
            return self._source.draw(index)
        except InputError as error:  # which the loader would wrap into a traceback
            return error


def iterate_masks(source: MaskSource, indices: Iterable[int], beside: bool) -> Iterator[Candidate]:
    """First attempts at the images `indices`, in order.

    Args:
        beside: make masks ahead of time, in processes of their own.
    """
    indices = list(indices)
    workers = min(_MAX_WORKERS, usable_cores()) if beside else 0
    loader = DataLoader(_Masks(source), batch_size=None, sampler=indices, num_workers=workers)
    for index, drawn in zip(indices, loader, strict=True):
        if isinstance(drawn, InputError):
            raise drawn
        yield Candidate(index, index, drawn)


class PairWriter:
    """Calls `finish` on drawn pairs in threads; on leaving the block, by an error too, all of them are finished.

    Args:
        finish: (candidate, its image) → why the pair is dropped, or None once it is written.
    """

    def __init__(self, finish: Callable[[Candidate, NDArray[np.uint8]], str | None]) -> None:
        self._finish = finish
        self._pool = ThreadPoolExecutor(min(_MAX_WORKERS, usable_cores()))
        self._pending: deque[tuple[Candidate, Future[str | None]]] = deque()

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether there are pairs whose outcome has not been taken."""
        return bool(self._pending)

    def put(self, candidate: Candidate, image: NDArray[np.uint8]) -> None:
        """Hands over a pair."""
        self._pending.append((candidate, self._pool.submit(self._finish, candidate, image)))

    def take(self, left: int) -> Iterator[tuple[Candidate, str | None]]:
        """Outcomes, in the order of `put`, of the pairs that are done; waits until at most `left` are not.

        Raises:
            Exception: whatever `finish` raised.
        """
        while self._pending and (len(self._pending) > left or self._pending[0][1].done()):
            candidate, future = self._pending.popleft()
            yield candidate, future.result()

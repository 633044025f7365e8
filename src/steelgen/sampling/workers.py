"""Background workers of sampling: processes that make masks, threads that filter and write pairs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from steelgen.devices import usable_cores
from steelgen.errors import InputError
from steelgen.sampling.inpainting import InpaintRegion
from steelgen.sampling.masks import BatchedMaskSource, MaskSource, SourceMask

_MAX_WORKERS = 8


@dataclass
class Candidate:
    """One attempt at one image."""

    image: int
    number: int
    """Mask number in the source, and offset from the base seed."""
    source_mask: SourceMask
    dropped: Counter[str] = field(default_factory=Counter)
    """Reasons why the earlier attempts were dropped."""
    uses_image: bool = False
    """Whether the generator was given the image of `source_mask`."""
    region: InpaintRegion | None = None
    """The region of `source_mask` that the generator inpainted."""
    conditions: dict[str, float | str] = field(default_factory=dict)
    """Conditions of the image by name."""
    makes_mask: bool = False
    """Whether the generator made the mask of `source_mask`."""


class _Masks(Dataset):
    def __init__(self, source: MaskSource) -> None:
        self._source = source

    def __getitem__(self, index: int) -> SourceMask | InputError:
        try:
            return self._source.draw(index)
        except InputError as error:  # raised, the loader would wrap it into a traceback
            return error


def iterate_masks(
    source: MaskSource, indices: Iterable[int], use_workers: bool, batch_size: int = 1
) -> Iterator[Candidate]:
    """Yields the first attempts at the images `indices`, in order; with workers, masks are made ahead of time.

    Args:
        batch_size: masks that a `BatchedMaskSource` makes at once, without workers.
    """
    indices = list(indices)
    if isinstance(source, BatchedMaskSource):
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            for index, source_mask in zip(part, source.draw_batch(part), strict=True):
                yield Candidate(index, index, source_mask)
        return
    workers = min(_MAX_WORKERS, usable_cores()) if use_workers else 0
    loader = DataLoader(_Masks(source), batch_size=None, sampler=indices, num_workers=workers)
    for index, mask in zip(indices, loader, strict=True):
        if isinstance(mask, InputError):
            raise mask
        yield Candidate(index, index, mask)


class PairWriter:
    """Calls `finish` on generated pairs in threads; leaving the `with` block waits for all of them.

    Args:
        finish: (candidate, its image) → reason for dropping the pair, or None once it is written.
    """

    def __init__(self, finish: Callable[[Candidate, NDArray[np.uint8]], str | None]) -> None:
        self._finish = finish
        self._pool = ThreadPoolExecutor(min(_MAX_WORKERS, usable_cores()))
        self._pending: deque[tuple[Candidate, Future[str | None]]] = deque()

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether there are pairs whose outcome has not been taken."""
        return bool(self._pending)

    def put(self, candidate: Candidate, image: NDArray[np.uint8]) -> None:
        """Queues a pair."""
        self._pending.append((candidate, self._pool.submit(self._finish, candidate, image)))

    def take(self, left: int) -> Iterator[tuple[Candidate, str | None]]:
        """Yields the outcomes of finished pairs in the order of `put`; waits until at most `left` are unfinished.

        Raises:
            Exception: from `finish`.
        """
        while self._pending and (len(self._pending) > left or self._pending[0][1].done()):
            candidate, future = self._pending.popleft()
            yield candidate, future.result()

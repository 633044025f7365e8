"""Parallel map over files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_POOL_FROM = 64
"""Fewer files are processed faster than a pool of processes starts."""
_MAX_WORKERS = 8
_CHUNK = 64


def map_on_cores(work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
    """Yields `map(work, tasks)` in order, in several processes if there are many tasks; `work` must be picklable."""
    cores = min(os.cpu_count() or 1, _MAX_WORKERS)
    if len(tasks) < _POOL_FROM or cores == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(cores) as pool:
        # Chunks bound the number of waiting results, and the work still in progress after an error.
        for start in range(0, len(tasks), _CHUNK):
            yield from pool.map(work, tasks[start : start + _CHUNK], chunksize=4)

"""The same work on many files, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_POOL_FROM = 64
"""Fewer files are done before a pool of processes has started."""
_MAX_WORKERS = 8
_PORTION = 64


def map_on_cores(work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
    """`map(work, tasks)` in order, by several processes where there are many tasks; `work` must be picklable."""
    cores = min(os.cpu_count() or 1, _MAX_WORKERS)
    if len(tasks) < _POOL_FROM or cores == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(cores) as pool:
        # In portions: the results that wait stay few, and after an error little is still under way.
        for start in range(0, len(tasks), _PORTION):
            yield from pool.map(work, tasks[start : start + _PORTION], chunksize=4)

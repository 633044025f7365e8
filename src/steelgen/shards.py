"""Shards: the images of a sampling run, or the cells of a utility study, that one job of an array does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steelgen.allocation import read_count
from steelgen.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, counted from 1 as in `--shard 2/4`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self.number}/{self.count}: must be I/N with 1 ≤ I ≤ N")

    def indices(self, total: int) -> range:
        """Returns the indices of this shard's images or cells among `total`: every count-th."""
        return range(self.number - 1, total, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parses "I/N".

    Raises:
        InputError: if it is not two integers with 1 ≤ I ≤ N.
    """
    number, _, count = text.partition("/")
    if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise InputError(f"--shard {text}: must be I/N, e.g. 2/4")
    return Shard(int(number), int(count))


def find_shard(environment: Mapping[str, str]) -> Shard | None:
    """Returns the shard of this process under torchrun (RANK, WORLD_SIZE) or in a Slurm job array of several tasks.

    Slurm does not tell a task that is resubmitted alone how many shards there were. Batch scripts therefore pass
    --shard; the environment serves job arrays written by hand.

    Raises:
        InputError: if a variable is missing or not an integer, or the array has gaps.
    """
    if (processes := read_count(environment, "WORLD_SIZE", 1)) > 1:
        return Shard(read_count(environment, "RANK") + 1, processes)
    if (tasks := read_count(environment, "SLURM_ARRAY_TASK_COUNT", 1)) > 1:
        task, first, last, step = (
            read_count(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "STEP")
        )
        if step and (last - first) // step + 1 == tasks:
            return Shard((task - first) // step + 1, tasks)
        raise InputError("SLURM_ARRAY_TASK_ID: the job array has gaps, so the shard is ambiguous; pass --shard I/N")
    return None

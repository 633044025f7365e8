"""Shards: which images of a sampling run, or cells of a utility study, one task of many does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steelgen.allocation import read_count
from steelgen.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1 as in `--shard 2/4`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self.number}/{self.count}: must be I/N with 1 ≤ I ≤ N")

    def indices(self, total: int) -> range:
        """The numbers of images or cells below `total` that are this shard's: every count-th."""
        return range(self.number - 1, total, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Reads "I/N".

    Raises:
        InputError: if it is not two whole numbers with 1 ≤ I ≤ N.
    """
    number, _, count = text.partition("/")
    if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise InputError(f"--shard {text}: must be I/N, e.g. 2/4")
    return Shard(int(number), int(count))


def find_shard(environment: Mapping[str, str]) -> Shard | None:
    """The shard that torchrun (RANK, WORLD_SIZE) or a Slurm job array of more than one task gives this process.

    A task of an array that is run again alone cannot be told how many shards there were, so a script names its
    shard with --shard; the environment is for a job array made by hand.

    Raises:
        InputError: if a variable is missing or no number, or the array has gaps.
    """
    if (processes := read_count(environment, "WORLD_SIZE", 1)) > 1:
        return Shard(read_count(environment, "RANK") + 1, processes)
    if (tasks := read_count(environment, "SLURM_ARRAY_TASK_COUNT", 1)) > 1:
        task, first, last, step = (
            read_count(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "STEP")
        )
        if step and (last - first) // step + 1 == tasks:
            return Shard((task - first) // step + 1, tasks)
        raise InputError("SLURM_ARRAY_TASK_ID: the job array has gaps, so its shards cannot be numbered; give --shard")
    return None

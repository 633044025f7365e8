"""Reading of evaluation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from steelgen.evaluation.verdict import Answer
from steelgen.files import Record, load_record

RESULT_FILE = "evaluation.json"


class _Figure(Record):
    """See `Figure`; undefined values are null."""

    section: str
    metric: str
    compared: str
    value: float | None
    floor: float | None
    n: tuple[int, int]
    seed: int
    better: Literal["lower", "higher", "near floor"]
    interval: tuple[float | None, float | None] | None = None
    note: str | None = None


class _Set(Record):
    count: int = Field(ge=0)


class _Sets(Record):
    generated: _Set


class Evaluation(Record):
    """The content of evaluation.json, as far as it is read."""

    config: dict[str, Any]
    geometry: dict[str, Any]
    sets: _Sets
    verdict: list[Answer]
    figures: list[_Figure]


def load_evaluation(folder: Path) -> dict[str, Any]:
    """Reads evaluation.json from an output folder of `evaluate`, or the file itself.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = folder if folder.suffix == ".json" else folder / RESULT_FILE
    return load_record(path, Evaluation).model_dump()

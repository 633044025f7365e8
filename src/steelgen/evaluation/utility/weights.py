"""Weights of generated pairs, from the metadata.jsonl of a samples folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.data.folder import load_metadata
from steelgen.errors import InputError
from steelgen.files import Record, load_text, parse_record


class _WeightedRow(Record):
    """The field of a row of metadata.jsonl that is read here."""

    pair_weight: float | None = Field(None, ge=0, le=1e12, strict=True)


def load_weights(folder: Path, images: Sequence[Path]) -> NDArray[np.float64] | None:
    """Reads how often pairs are to be shown, in proportion to each other.

    Args:
        folder: has metadata.jsonl.
        images: N paths of generated images.

    Returns:
        (N,) weights; None if no pair has one.

    Raises:
        InputError: if a weight is no number of at least 0, some pairs lack one, or all are 0.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file() or "pair_weight" not in load_text(path):
        return None
    rows = load_metadata(folder)
    names = [image.relative_to(folder).as_posix() for image in images]
    found = {name: parse_record(rows.get(name, {}), _WeightedRow, f"{path}: {name}").pair_weight for name in names}
    weights = [weight for weight in found.values() if weight is not None]
    if not weights:
        return None
    if len(weights) < len(images):
        missing = next(name for name, weight in found.items() if weight is None)
        raise InputError(f"{path}: {missing} has no pair_weight, but {len(weights)} other pairs do")
    if not any(weights):
        raise InputError(f"{path}: pair_weight is 0 for all pairs, so none would be shown")
    return np.array(weights)

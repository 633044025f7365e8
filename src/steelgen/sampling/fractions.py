"""Phase fractions asked for by class name, as the tensor that generators of masks take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steelgen.data.folder import DatasetInfo
from steelgen.errors import InputError


def find_label(field: str, name: str, info: DatasetInfo) -> int:
    """Returns the index of a class; raises InputError, with the config field, if there is none of that name."""
    if name not in info.class_names:
        raise InputError(f"{field}: {name!r} is not among the classes {', '.join(info.class_names)}")
    return info.class_names.index(name)


def check_total(field: str, total: float) -> None:
    """Raises InputError if phase fractions add up to more than 1."""
    if total > 1:
        raise InputError(f"{field}: fractions add up to {total:g}, more than 1")


def stack_fractions(rows: Sequence[Mapping[int, float]], num_classes: int) -> Tensor | None:
    """Stacks the fractions of N masks, by class index, as (N, num_classes); NaN for free classes, None if all are."""
    if not any(rows):
        return None
    fractions = torch.full((len(rows), num_classes), math.nan)
    for row, shares in zip(fractions, rows, strict=True):
        for label, share in shares.items():
            row[label] = share
    return fractions

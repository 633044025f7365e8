"""Conditions of generated images: fixed values, values from a range, or those of the mask's micrograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steelgen.config.sample import SampleConfig
from steelgen.data.conditions import Condition, Row, encode_values, load_rows
from steelgen.data.crops import load_micrographs
from steelgen.errors import InputError
from steelgen.generators import Generator
from steelgen.generators.drawing import conditions_of
from steelgen.sampling.masks import SourceMask

_STREAM = 6
"""Random stream of values from a range."""
Values = dict[str, float | str]
"""Value by condition; others are null."""


class ConditionSource:
    """The conditions of a sampling run.

    Args:
        config: of the run.
        generator: that samples.

    Raises:
        InputError: if the generator has no such condition, a category is unknown, a value is of the wrong type, or the
            micrographs of the masks have none.
    """

    def __init__(self, config: SampleConfig, generator: Generator) -> None:
        self._wanted, self._conditions = config.conditions, conditions_of(generator)
        self._rows: dict[tuple[str, str], dict[str, Row]] = {}
        self.notes: list[str] = []
        """Lines about numbers outside the trained range."""
        known = {condition.name: condition for condition in self._conditions}
        if self._wanted and not known:
            raise InputError("conditions: not applicable; the generator was trained without data.conditions")
        if isinstance(self._wanted, str):
            return
        for name, wanted in self._wanted.items():
            if name not in known:
                raise InputError(f"conditions.{name}: not a condition of the generator; known: {', '.join(known)}")
            for value in wanted if isinstance(wanted, tuple) else (wanted,):
                self._check(known[name], value, isinstance(wanted, tuple))

    def choose(self, seed: int, source_mask: SourceMask) -> Values:
        """Returns the values of one image, a function of its seed and mask."""
        if isinstance(self._wanted, str):
            return self._read(source_mask)
        values: Values = {}
        for index, condition in enumerate(self._conditions):
            wanted = self._wanted.get(condition.name)
            if isinstance(wanted, tuple):
                share = np.random.default_rng((seed, _STREAM, index)).random()
                low, high = (math.log(limit) if condition.log else limit for limit in wanted)
                value = low + share * (high - low)
                values[condition.name] = float(math.exp(value) if condition.log else value)
            elif wanted is not None:
                values[condition.name] = wanted
        return values

    def encode(self, rows: Sequence[Values]) -> Tensor | None:
        """Encodes the values of N images as (N, K) float32; None if the generator has no conditions."""
        return encode_conditions(self._conditions, rows)

    def _check(self, condition: Condition, value: float | str, is_limit: bool) -> None:
        where = "conditions"
        if is_limit and condition.categories:
            raise InputError(f"{where}.{condition.name}: a range of a category; name one of its values")
        condition.encode(value, where)
        if isinstance(value, int | float) and not condition.low <= value <= condition.high:
            self.notes.append(
                f"{where}.{condition.name}: {value:g} lies outside the trained {condition.low:g} to {condition.high:g}"
            )

    def _read(self, source_mask: SourceMask) -> Values:
        """The values of the micrograph of a mask."""
        place = source_mask.place
        assert place is not None, "the config allows this only for masks with a micrograph"
        key = place.dataset, place.split
        if key not in self._rows:
            stems = load_micrographs(Path(place.dataset), place.split).stems
            self._rows[key] = dict(zip(stems, load_rows(Path(place.dataset), place.split), strict=True))
        row = self._rows[key][place.stem]
        names = [condition.name for condition in self._conditions]
        if not any(name in row.values for name in names):
            raise InputError(f"{row.where}: has none of {', '.join(names)} in metadata.jsonl")
        values = {name: row.values[name] for name in names if row.values.get(name) is not None}
        encode_values(self._conditions, [(values, row.where)])
        return values


def encode_conditions(conditions: Sequence[Condition], rows: Sequence[Values]) -> Tensor | None:
    """Encodes the values of N images as (N, K) float32; None if there are no conditions.

    Raises:
        InputError: if a value is of the wrong type or an unknown category.
    """
    if not conditions:
        return None
    return torch.from_numpy(encode_values(conditions, [(row, "conditions") for row in rows]))

"""Conditions: what is known of a micrograph as a whole, numbers or categories in columns of metadata.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.data.folder import list_pairs, load_metadata
from steelgen.errors import InputError, quote_value
from steelgen.files import Record

_DECADES = 2.0
"""Decades that positive numbers span from which on their logarithms are used."""
_IQR_PER_DEVIATION = 1.349
"""Interquartile range of a standard normal distribution."""
MAX_CATEGORIES = 255


class Condition(Record):
    """One condition of a generator: how the values of its column become numbers for the network."""

    name: str
    """The column of metadata.jsonl."""
    categories: list[str] = Field([], max_length=MAX_CATEGORIES)
    """The known categories in order; empty for a number."""
    log: bool = False
    """Logarithms of the numbers are used."""
    center: float = 0.0
    """Median of the numbers, or of their logarithms."""
    scale: float = Field(1.0, gt=0)
    """Their spread: the interquartile range over that of a standard normal distribution."""
    low: float = 0.0
    high: float = 0.0
    """Smallest and largest number in training."""

    def encode(self, value: Any, where: str) -> float:
        """Returns the network's number of a value: a scaled number, or the index of a category.

        Args:
            where: the file or field of the value, for messages.

        Raises:
            InputError: if it is not a number, or an unknown category.
        """
        if self.categories:
            if _to_category(value) not in self.categories:
                known = ", ".join(self.categories)
                raise InputError(f"{where}: {self.name} {quote_value(value)} was not trained; known: {known}")
            return float(self.categories.index(_to_category(value)))
        if not _is_number(value) or (self.log and value <= 0):
            kind = "a positive number" if self.log else "a number"
            raise InputError(f"{where}: {self.name} is {quote_value(value)}, must be {kind}")
        return ((math.log(value) if self.log else float(value)) - self.center) / self.scale


@dataclass(frozen=True)
class Row:
    """A micrograph's line in metadata.jsonl."""

    where: str
    """Path of the image, for messages."""
    values: Mapping[str, Any]


def outline(conditions: Sequence[Condition]) -> list[tuple[str, list[str]]]:
    """Names and categories of conditions, on which the layers of a network depend."""
    return [(condition.name, condition.categories) for condition in conditions]


def load_rows(root: Path, split: str) -> list[Row]:
    """Loads the metadata of the micrographs of a split, in the order of `load_micrographs`; empty where missing."""
    metadata = load_metadata(root)
    pairs = list_pairs(root, split)
    return [Row(str(pair.image), metadata.get(f"{split}/images/{pair.image.name}", {})) for pair in pairs]


def fit_conditions(
    names: Sequence[str], datasets: Sequence[Sequence[Row]], known: Sequence[Condition] = ()
) -> tuple[Condition, ...]:
    """Finds out how to encode columns of metadata.jsonl.

    Columns of numbers are scaled by median and quartiles; all others are categories.

    Args:
        names: the columns.
        datasets: the metadata of one or several datasets. A dataset may lack a column as a whole.
        known: conditions of a trained generator; their scales and categories stay, and new categories are added.

    Raises:
        InputError: if a column is missing, is missing for some micrographs of a dataset, has only one value, or mixes
            numbers with others.
    """
    before = {condition.name: condition for condition in known}
    return tuple(_fit(name, datasets, before.get(name)) for name in names)


def _fit(name: str, datasets: Sequence[Sequence[Row]], known: Condition | None) -> Condition:
    values = [row.values[name] for rows in datasets for row in rows if _has(row, name)]
    if not values:
        columns = sorted({column for rows in datasets for row in rows for column in row.values})
        raise InputError(
            f"data.conditions: no micrograph has {name!r} in metadata.jsonl; columns: {', '.join(columns) or 'none'}"
        )
    for rows in datasets:
        _check_complete(name, rows)
    numbers = [float(value) for value in values if _is_number(value)]
    if numbers and len(numbers) < len(values):
        odd = next(value for value in values if not _is_number(value))
        raise InputError(f"data.conditions: {name!r} mixes numbers and others, for example {quote_value(odd)}")
    names = sorted({_to_category(value) for value in values}) if not numbers else []
    if known is None and len(set(numbers) or set(names)) == 1:
        raise InputError(f"data.conditions: {name!r} is {quote_value(values[0])} for all micrographs; remove it")
    if known is not None and bool(known.categories) == bool(names):
        if numbers:
            low, high = min(known.low, *numbers), max(known.high, *numbers)
            return known.model_copy(update={"low": low, "high": high})
        names = list(dict.fromkeys([*known.categories, *names]))
    if names:
        if len(names) > MAX_CATEGORIES:
            raise InputError(f"data.conditions: {name!r} has {len(names)} categories, more than {MAX_CATEGORIES}")
        return Condition(name=name, categories=names)
    low, high = min(numbers), max(numbers)
    log = low > 0 and math.log10(high / low) >= _DECADES
    scaled = np.log(numbers) if log else np.array(numbers)
    first, center, third = np.quantile(scaled, (0.25, 0.5, 0.75))
    spread = float(third - first) / _IQR_PER_DEVIATION or float(scaled.std()) or 1.0
    return Condition(name=name, log=log, center=float(center), scale=spread, low=low, high=high)


def encode_rows(datasets: Sequence[Sequence[Row]], conditions: Sequence[Condition]) -> NDArray[np.float32]:
    """Encodes the conditions of micrographs.

    Args:
        datasets: the metadata of the micrographs, dataset by dataset.

    Returns:
        (N, K) float32; NaN, the null condition, for datasets without the column.

    Raises:
        InputError: if a value is missing for some micrographs of a dataset, is not a number, or a category is unknown.
    """
    for condition in conditions:
        for rows in datasets:
            _check_complete(condition.name, rows)
    return encode_values(conditions, [(row.values, row.where) for rows in datasets for row in rows])


def encode_values(
    conditions: Sequence[Condition], rows: Sequence[tuple[Mapping[str, Any], str]]
) -> NDArray[np.float32]:
    """Encodes values by name, with their file or field for messages, as (N, K) float32; NaN where missing."""
    encoded = [
        [
            math.nan if values.get(condition.name) is None else condition.encode(values[condition.name], where)
            for condition in conditions
        ]
        for values, where in rows
    ]
    return np.array(encoded, np.float32).reshape(len(encoded), len(conditions))


def _check_complete(name: str, rows: Sequence[Row]) -> None:
    lacking = [row for row in rows if not _has(row, name)]
    if lacking and len(lacking) < len(rows):
        raise InputError(f"{lacking[0].where}: has no {name!r} in metadata.jsonl, other micrographs of its dataset do")


def _has(row: Row, name: str) -> bool:
    return row.values.get(name) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _to_category(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

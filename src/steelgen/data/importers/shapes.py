"""Vertices from text and JSON, checked."""

from __future__ import annotations

import ast
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.errors import InputError

MAX_COORDINATE = 1e6
"""Vertices may lie outside their image, but not on another continent."""


def parse_literal(text: str) -> Any:
    """Reads a Python literal (numbers, tuples, lists); nothing is executed.

    Raises:
        InputError: if the text is anything else.
    """
    try:
        with warnings.catch_warnings():
            # "1or 2" is a warning before it is an error.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InputError(f"not a list of points: {text!r:.60}") from None


def build_polygon(points: Any) -> NDArray[np.float64]:
    """Makes (N, 2) vertices from pairs of numbers, N ≥ 3 unless it is empty.

    Raises:
        InputError: if `points` are no pairs, or a coordinate is no finite number within ±10⁶.
    """
    if not isinstance(points, list | tuple):
        raise InputError(f"not a list of points: {points!r:.60}")
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2 or not all(map(_is_coordinate, point)):
            raise InputError(f"not a point (x, y) with finite numbers within ±{MAX_COORDINATE:.0f}: {point!r:.60}")
    if 0 < len(points) < 3:
        raise InputError(f"a polygon needs three points, this one has {len(points)}: {points!r:.60}")
    return np.array(points, np.float64).reshape(-1, 2)


def build_polygon_from_flat(numbers: Any) -> NDArray[np.float64]:
    """Makes vertices from COCO's x1, y1, x2, y2, …; see `build_polygon`."""
    if not isinstance(numbers, list) or len(numbers) % 2:
        raise InputError(f"not a list of x, y, x, y, …: {numbers!r:.60}")
    return build_polygon(list(zip(numbers[::2], numbers[1::2], strict=True)))


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE

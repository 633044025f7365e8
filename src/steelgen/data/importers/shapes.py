"""Vertices from text and JSON, checked."""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.outlines import join_rings
from steelgen.errors import InputError

_ELLIPSE_POINTS = 256
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


def build_ellipse(x: Any, y: Any, radius_x: Any, radius_y: Any, degrees: Any = 0.0) -> NDArray[np.float64]:
    """An ellipse around (x, y), turned clockwise as seen in the image, as a polygon of its own area.

    Raises:
        InputError: if a value is no finite number, or a radius is negative.
    """
    x, y, radius_x, radius_y, degrees = _check_numbers(x, y, radius_x, radius_y, degrees)
    if min(radius_x, radius_y) < 0:
        raise InputError(f"a radius is negative: {radius_x:g}, {radius_y:g}")
    step = 2 * math.pi / _ELLIPSE_POINTS
    # A polygon on the ellipse is smaller than the ellipse.
    scale = math.sqrt(step / math.sin(step))
    angles = np.arange(_ELLIPSE_POINTS) * step
    ring = np.stack([radius_x * scale * np.cos(angles), radius_y * scale * np.sin(angles)], axis=1)
    return _turn(ring, degrees) + np.array((x, y))


def build_box(
    x: Any, y: Any, width: Any, height: Any, degrees: Any = 0.0, pivot: str = "corner"
) -> NDArray[np.float64]:
    """The corners of a rectangle whose top left one, before it is turned clockwise around `pivot`, is (x, y).

    Args:
        pivot: `corner` or `center`.

    Raises:
        InputError: if a value is no finite number.
    """
    x, y, width, height, degrees = _check_numbers(x, y, width, height, degrees)
    shift = np.array((width / 2, height / 2)) if pivot == "center" else np.zeros(2)
    ring = np.array([(0, 0), (width, 0), (width, height), (0, height)]) - shift
    return _turn(ring, degrees) + shift + np.array((x, y))


def build_rings(rings: Any) -> NDArray[np.float64]:
    """One ring of GeoJSON's outline and holes, each a list of points of which the last may be the first again.

    Raises:
        InputError: see `build_polygon`.
    """
    if not isinstance(rings, list) or not rings:
        raise InputError(f"not a list of rings: {rings!r:.60}")
    outline, *holes = (open_ring(build_polygon(_drop_heights(ring))) for ring in rings)
    return join_rings(outline, [hole for hole in holes if len(hole)])


def open_ring(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring without a last vertex that repeats the first."""
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _drop_heights(points: Any) -> Any:
    if not isinstance(points, list):
        return points
    return [point[:2] if isinstance(point, list) and len(point) == 3 else point for point in points]


def _turn(ring: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ring @ np.array([(cosine, sine), (-sine, cosine)])


def _check_numbers(*values: Any) -> list[float]:
    for value in values:
        if not _is_coordinate(value):
            raise InputError(f"not a finite number within ±{MAX_COORDINATE:.0f}: {value!r:.40}")
    return [float(value) for value in values]


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE

"""Validated polygons, boxes, ellipses and masks from values in annotation files."""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import MAX_PIXELS
from steelgen.data.outlines import join_rings
from steelgen.data.runlength import encode_runs
from steelgen.errors import InputError

_ELLIPSE_POINTS = 256
MAX_COORDINATE = 1e6
"""Largest absolute coordinate in pixels; vertices may be outside of their image."""


def parse_literal(text: str) -> Any:
    """Parses a Python literal (numbers, tuples, lists) without executing code.

    Raises:
        InputError: if the text is anything else.
    """
    try:
        with warnings.catch_warnings():
            # "1or 2" causes a warning before the error.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InputError(f"not a list of points: {text!r:.60}") from None


def build_polygon(points: Any) -> NDArray[np.float64]:
    """Converts pairs of numbers to (N, 2) vertices, with N = 0 or N ≥ 3.

    Raises:
        InputError: if `points` are not pairs, or a coordinate is not a finite number within ±10⁶.
    """
    if not isinstance(points, list | tuple):
        raise InputError(f"not a list of points: {points!r:.60}")
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2 or not all(map(_is_coordinate, point)):
            raise InputError(f"not a point (x, y) with finite numbers within ±{MAX_COORDINATE:.0f}: {point!r:.60}")
    if 0 < len(points) < 3:
        raise InputError(f"a polygon needs three points, got {len(points)}: {points!r:.60}")
    return np.array(points, np.float64).reshape(-1, 2)


def build_polygon_from_flat(numbers: Any) -> NDArray[np.float64]:
    """Converts COCO's x1, y1, x2, y2, … to vertices; see `build_polygon`."""
    if not isinstance(numbers, list) or len(numbers) % 2:
        raise InputError(f"not a list of x, y, x, y, …: {numbers!r:.60}")
    return build_polygon(list(zip(numbers[::2], numbers[1::2], strict=True)))


def build_ellipse(x: Any, y: Any, radius_x: Any, radius_y: Any, degrees: Any = 0.0) -> NDArray[np.float64]:
    """Builds a polygon with the area of an ellipse around (x, y), rotated clockwise in the image.

    Raises:
        InputError: if a value is not a finite number, or a radius is negative.
    """
    x, y, radius_x, radius_y, degrees = _check_numbers(x, y, radius_x, radius_y, degrees)
    if min(radius_x, radius_y) < 0:
        raise InputError(f"a radius is negative: {radius_x:g}, {radius_y:g}")
    step = 2 * math.pi / _ELLIPSE_POINTS
    # An inscribed polygon is smaller than the ellipse.
    scale = math.sqrt(step / math.sin(step))
    angles = np.arange(_ELLIPSE_POINTS) * step
    ring = np.stack([radius_x * scale * np.cos(angles), radius_y * scale * np.sin(angles)], axis=1)
    return _turn(ring, degrees) + np.array((x, y))


def build_box(
    x: Any, y: Any, width: Any, height: Any, degrees: Any = 0.0, pivot: str = "corner"
) -> NDArray[np.float64]:
    """Builds a rectangle with the top left corner (x, y), rotated clockwise in the image around `pivot`.

    Args:
        pivot: `corner` (top left) or `center`.

    Raises:
        InputError: if a value is not a finite number.
    """
    x, y, width, height, degrees = _check_numbers(x, y, width, height, degrees)
    shift = np.array((width / 2, height / 2)) if pivot == "center" else np.zeros(2)
    ring = np.array([(0, 0), (width, 0), (width, height), (0, height)]) - shift
    return _turn(ring, degrees) + shift + np.array((x, y))


def build_rings(rings: Any) -> NDArray[np.float64]:
    """Joins GeoJSON's outline and holes, lists of points that may end with the first point; see `build_polygon`."""
    if not isinstance(rings, list) or not rings:
        raise InputError(f"not a list of rings: {rings!r:.60}")
    outline, *holes = (open_ring(build_polygon(_drop_heights(ring))) for ring in rings)
    return join_rings(outline, [hole for hole in holes if len(hole)])


def open_ring(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Removes a last vertex that repeats the first."""
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def check_box(left: int, top: int, width: int, height: int, size: tuple[int, int]) -> None:
    """Raises an `InputError` if the box of a mask is empty or exceeds an image of `size` (H, W)."""
    if not (0 <= left <= size[1] - width and 0 <= top <= size[0] - height and width > 0 and height > 0):
        raise InputError(f"a mask of {width}x{height} at ({left}, {top}) exceeds the image of {size[1]}x{size[0]}")


def place_mask(mask: NDArray[np.bool_], left: int, top: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """Places an (h, w) mask with the top left pixel (left, top) in an image of `size` (H, W), and returns its runs."""
    whole = np.zeros(size, bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return encode_runs(whole)


def check_size(height: Any, width: Any, where: object) -> tuple[int, int]:
    """Returns (height, width); raises an `InputError` at `where` unless they are integers of at most MAX_PIXELS."""
    is_valid = isinstance(height, int) and isinstance(width, int) and min(height, width) > 0
    if not is_valid or height * width > MAX_PIXELS:
        raise InputError(
            f"{where}: height {height!r:.20} and width {width!r:.20} must be integers from 1, with at most "
            f"{MAX_PIXELS:,} pixels"
        )
    return height, width


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

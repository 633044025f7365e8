"""Regions of a mask and their outlines, for formats with polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.spatial
from numpy.typing import NDArray

from steelgen.data.runlength import count_runs, encode_runs

_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""(x, y) steps along pixel borders: right, down, left, up."""


class Region(NamedTuple):
    """An object of one class: a 4-connected component, or all pixels of one instance id."""

    class_index: int
    top: int
    left: int
    pixels: NDArray[np.bool_]
    """(h, w) within the region's bounding box."""
    size: tuple[int, int]
    """(height, width) of the whole mask."""

    @property
    def area(self) -> int:
        """Area in pixels."""
        return int(self.pixels.sum())

    def trace_rings(self) -> list[NDArray[np.int64]]:
        """Traces outlines and, in the opposite direction, holes: (N, 2) corners (x, y) each, in the whole mask."""
        return [_drop_straight(ring) + np.array((self.left, self.top)) for ring in _follow_borders(self.pixels).rings]

    def trace(self) -> list[NDArray[np.int64]]:
        """Traces one ring per part, with bridges to its holes; the ring encloses exactly the area of the part."""
        return [ring + np.array((self.left, self.top)) for ring in trace_outlines(self.pixels)]

    def encode(self) -> list[int]:
        """Encodes the region as COCO's uncompressed counts."""
        # An extra row separates the runs of neighboring columns.
        rows, columns = self.pixels.shape
        apart = np.zeros((rows + 1, columns), bool)
        apart[:rows] = self.pixels
        runs = encode_runs(apart)
        column, row = np.divmod(runs[:, 0], rows + 1)
        height, width = self.size
        runs[:, 0] = (self.left + column) * height + self.top + row
        return count_runs(runs, height * width)


def iterate_regions(
    mask: NDArray[np.uint8], classes: Iterable[int], instances: NDArray[np.uint16] | None = None
) -> Iterator[Region]:
    """Yields the regions of a mask, class by class.

    Args:
        mask: (H, W) class indices.
        classes: class indices to include.
        instances: (H, W) ids of objects, which may touch or have several parts; id 0 means by connected regions.
    """
    for index in classes:
        chosen = mask == index
        if instances is not None and instances[chosen].any():
            ids = np.where(chosen, instances, 0)
            present, ids = np.unique(ids, return_inverse=True)
            yield from _cut_regions(index, ids.reshape(mask.shape) + int(present[0] != 0))
            chosen &= instances == 0
        yield from _cut_regions(index, scipy.ndimage.label(chosen)[0])


def _cut_regions(class_index: int, labels: NDArray[np.integer]) -> Iterator[Region]:
    """Yields the regions of (H, W) labels; 0 is not a region."""
    for number, window in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if window is not None:
            pixels = labels[window] == number
            yield Region(class_index, window[0].start, window[1].start, pixels, labels.shape)


def join_rings(outline: NDArray, holes: Sequence[NDArray]) -> NDArray:
    """Joins an outline and its holes to one (N, 2) ring, by zero-width bridges.

    Holes run in the opposite direction of the outline, so the ring encloses exactly the outline minus the holes.
    """
    reversed_holes = [hole[::-1] if _signed_area(hole) * _signed_area(outline) > 0 else hole for hole in holes]
    return _bridge(outline, reversed_holes)


def join_even_odd(rings: Sequence[NDArray]) -> NDArray:
    """Joins rings to one (N, 2) ring with the area of the even-odd rule: outlines, holes, parts in holes.

    Rings may touch but must not cross.
    """
    import shapely

    order = sorted((ring for ring in rings if _signed_area(ring)), key=lambda ring: -abs(_signed_area(ring)))
    oriented = []
    for number, ring in enumerate(order):
        inside = shapely.make_valid(shapely.Polygon(ring)).representative_point()
        depth = sum(_contains(larger, inside.x, inside.y) for larger in order[:number])
        oriented.append(ring if (_signed_area(ring) > 0) == (depth % 2 == 0) else ring[::-1])
    return _bridge(oriented[0], oriented[1:]) if oriented else np.empty((0, 2))


def _bridge(ring: NDArray, others: Sequence[NDArray]) -> NDArray:
    """Joins other rings to a ring, each at the nearest pair of vertices."""
    tree = scipy.spatial.cKDTree(ring)
    detours: dict[int, list[NDArray]] = {}
    for other in others:
        distance, nearest = tree.query(other)
        first = int(distance.argmin())
        detours.setdefault(int(nearest[first]), []).append(np.roll(other, -first, axis=0))
    return _insert(ring, detours)


def _insert(ring: NDArray, detours: Mapping[int, Sequence[NDArray]]) -> NDArray:
    """Inserts closed detours around other rings at vertices of a ring."""
    pieces, done = [], 0
    for at in sorted(detours):
        pieces.append(ring[done : at + 1])
        for other in detours[at]:
            pieces += [other, other[:1], ring[at : at + 1]]
        done = at + 1
    return np.concatenate([*pieces, ring[done:]])


def _contains(ring: NDArray, x: float, y: float) -> bool:
    """Whether a ray from (x, y) to the right crosses the ring an odd number of times."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    crosses = (y0 <= y) != (y1 <= y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing_x = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    return bool((crosses & (crossing_x > x)).sum() % 2)


def trace_outlines(pixels: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Traces the borders of the 4-connected parts of an (h, w) mask, one ring of pixel corners (x, y) per part.

    A horizontal bridge of zero width joins the top left corner of each hole to the border on its left, so the ring
    encloses exactly the area of the part.
    """
    borders = _follow_borders(pixels)
    # For each pixel, the column of the nearest border on its left.
    lefts = np.maximum.accumulate(np.where(pixels, 0, np.arange(1, pixels.shape[1] + 1)), axis=1)
    firsts = {}
    for number, ring in enumerate(borders.rings):
        if _signed_area(ring) < 0:
            firsts[number] = int(np.lexsort((ring[:, 1], ring[:, 0]))[0])
    detours: list[dict[int, list[NDArray]]] = [{} for _ in borders.rings]
    # A hole is to the right of the border it is joined to: from right to left, each is complete before it is joined.
    for number in sorted(firsts, key=lambda number: -borders.rings[number][firsts[number], 0]):
        ring, first = borders.rings[number], firsts[number]
        x, y = ring[first]
        left = lefts[y, x - 1]
        parent = borders.ring[y, left]
        at = int(borders.position[y, left] + 1) % len(borders.rings[parent])
        inner = {(vertex - first) % len(ring): rings for vertex, rings in detours[number].items()}
        detours[parent].setdefault(at, []).append(_insert(np.roll(ring, -first, axis=0), inner))
    outlines = [number for number in range(len(borders.rings)) if number not in firsts]
    return [_drop_straight(_insert(borders.rings[number], detours[number])) for number in outlines]


class _Borders(NamedTuple):
    """Borders of a mask as closed rings of unit steps."""

    rings: list[NDArray[np.int64]]
    """(N, 2) corners (x, y) each; the mask is on the right of the direction of travel (y points down)."""
    ring: NDArray[np.int64]
    """(h, w + 1) index of the ring with an upward step along the left border of the pixel (row, column)."""
    position: NDArray[np.int64]
    """(h, w + 1) position of that step in its ring."""


def _follow_borders(pixels: NDArray[np.bool_]) -> _Borders:
    padded = np.zeros((pixels.shape[0] + 2, pixels.shape[1] + 2), bool)
    padded[1:-1, 1:-1] = pixels
    # The pixels below right, below left, above left and above right of each corner (x, y), which are also the pixels on
    # the right of a step to the right, down, left and up. A border step has a mask pixel on its right only.
    on_right = np.stack([padded[1:, 1:], padded[1:, :-1], padded[:-1, :-1], padded[:-1, 1:]])
    leaves = on_right & ~np.roll(on_right, 1, axis=0)
    direction, y, x = np.nonzero(leaves)
    number = np.full(leaves.shape, -1)
    number[direction, y, x] = np.arange(len(x))
    dx, dy = _STEPS[direction].T
    # Turning right first separates pixels that touch at a corner.
    right, ahead, left = (number[(direction + turn) % 4, y + dy, x + dx] for turn in (1, 0, 3))
    following = np.where(right >= 0, right, np.where(ahead >= 0, ahead, left)).tolist()
    seen = bytearray(len(following))
    rings: list[NDArray[np.int64]] = []
    ring_of, position_of = np.zeros((2, len(x)), np.int64)
    for start in range(len(following)):
        steps = []
        step = start
        while not seen[step]:
            seen[step] = 1
            steps.append(step)
            step = following[step]
        if steps:
            ring_of[steps], position_of[steps] = len(rings), np.arange(len(steps))
            rings.append(np.stack([x[steps], y[steps]], axis=1))
    # An upward step starts one row below the pixel.
    upward = number[3, 1:]
    return _Borders(rings, ring_of[upward], position_of[upward])


def _drop_straight(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """Removes the corners at which a ring of axis-aligned steps does not turn."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[(np.sign(before) != np.sign(after)).any(axis=1)]


def _signed_area(ring: NDArray[np.int64]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2

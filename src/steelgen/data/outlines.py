"""Masks → islands and their outlines, for the formats that hold polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.spatial
from numpy.typing import NDArray

from steelgen.data.runlength import count_runs, encode_runs

_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""(x, y) along a pixel border: right, down, left, up."""


class Region(NamedTuple):
    """An object of one class: an island, whose pixels touch along edges, or all pixels of one instance id."""

    class_index: int
    top: int
    left: int
    pixels: NDArray[np.bool_]
    """(h, w) within the region's bounding box."""
    size: tuple[int, int]
    """(height, width) of the whole mask."""

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.pixels.sum())

    def trace_rings(self) -> list[NDArray[np.int64]]:
        """Outlines and, running the other way round, holes: (N, 2) corners (x, y) each, in the whole mask."""
        return [_drop_straight(ring) + np.array((self.left, self.top)) for ring in _follow_borders(self.pixels).rings]

    def trace(self) -> list[NDArray[np.int64]]:
        """One ring a part, the holes joined to it by bridges; the area it winds around is the part's, exactly."""
        return [ring + np.array((self.left, self.top)) for ring in trace_outlines(self.pixels)]

    def encode(self) -> list[int]:
        """COCO's uncompressed counts."""
        # A row more keeps the runs of neighboring columns apart.
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
    """The regions of a mask, class by class.

    Args:
        mask: (H, W) class indices.
        classes: those whose regions are wanted.
        instances: (H, W) ids of objects, which may touch or be of several parts; pixels of id 0 make islands.
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
    """(H, W) labels, 0 for none, as regions."""
    for number, window in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if window is not None:
            pixels = labels[window] == number
            yield Region(class_index, window[0].start, window[1].start, pixels, labels.shape)


def join_rings(outline: NDArray, holes: Sequence[NDArray]) -> NDArray:
    """One ring, (N, 2), of an outline and its holes, each joined to it by a bridge that is walked there and back.

    Holes are turned to run the other way round than the outline: the area that the ring winds around is that of the
    outline less the holes, exactly.
    """
    turned = [hole[::-1] if _signed_area(hole) * _signed_area(outline) > 0 else hole for hole in holes]
    return _bridge(outline, turned)


def join_even_odd(rings: Sequence[NDArray]) -> NDArray:
    """One ring, (N, 2), that winds around what an odd number of rings go around: outlines, holes, parts in holes.

    Rings may touch but not cross.
    """
    order = sorted((ring for ring in rings if _signed_area(ring)), key=lambda ring: -abs(_signed_area(ring)))
    turned = []
    for number, ring in enumerate(order):
        inside = _find_inside(ring)
        depth = sum(_goes_around(larger, inside) for larger in order[:number])
        turned.append(ring if (_signed_area(ring) > 0) == (depth % 2 == 0) else ring[::-1])
    return _bridge(turned[0], turned[1:]) if turned else np.empty((0, 2))


def _bridge(ring: NDArray, others: Sequence[NDArray]) -> NDArray:
    """Walks along a ring and on the way, from its nearest vertex, to each other one, around it, and back."""
    tree = scipy.spatial.cKDTree(ring)
    detours: dict[int, list[NDArray]] = {}
    for other in others:
        distance, nearest = tree.query(other)
        first = int(distance.argmin())
        detours.setdefault(int(nearest[first]), []).append(np.roll(other, -first, axis=0))
    return _insert(ring, detours)


def _insert(ring: NDArray, detours: Mapping[int, Sequence[NDArray]]) -> NDArray:
    """The ring with detours from its vertices around other rings, each closed and left where it was entered."""
    pieces, done = [], 0
    for at in sorted(detours):
        pieces.append(ring[done : at + 1])
        for other in detours[at]:
            pieces += [other, other[:1], ring[at : at + 1]]
        done = at + 1
    return np.concatenate([*pieces, ring[done:]])


def _find_inside(ring: NDArray) -> tuple[float, float]:
    import shapely

    point = shapely.make_valid(shapely.Polygon(ring)).representative_point()
    return point.x, point.y


def _goes_around(ring: NDArray, point: tuple[float, float]) -> bool:
    """Whether a ray from the point to the right crosses the ring an odd number of times."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    crosses = (y0 <= point[1]) != (y1 <= point[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        x = x0 + (point[1] - y0) / (y1 - y0) * (x1 - x0)
    return bool((crosses & (x > point[0])).sum() % 2)


def trace_outlines(pixels: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The borders of the 4-connected parts of an (h, w) mask, one ring of pixel corners (x, y) a part.

    From its top left corner a hole is joined, straight through the part, to the border on the left of it, by a bridge
    of no width that is walked there and back: the area the ring winds around is that of the part, exactly.
    """
    borders = _follow_borders(pixels)
    # Of each pixel the column of the last border on its left.
    lefts = np.maximum.accumulate(np.where(pixels, 0, np.arange(1, pixels.shape[1] + 1)), axis=1)
    firsts = {}
    for number, ring in enumerate(borders.rings):
        if _signed_area(ring) < 0:
            firsts[number] = int(np.lexsort((ring[:, 1], ring[:, 0]))[0])
    detours: list[dict[int, list[NDArray]]] = [{} for _ in borders.rings]
    # A hole begins on the right of what it is joined to: from right to left each is whole before it is joined.
    for number in sorted(firsts, key=lambda number: -borders.rings[number][firsts[number], 0]):
        ring, first = borders.rings[number], firsts[number]
        x, y = ring[first]
        left = lefts[y, x - 1]
        parent = borders.ring[y, left]
        at = int(borders.position[y, left] + 1) % len(borders.rings[parent])
        whole = _insert(np.roll(ring, -first, axis=0), _roll_keys(detours[number], first, len(ring)))
        detours[parent].setdefault(at, []).append(whole)
    outlines = [number for number in range(len(borders.rings)) if number not in firsts]
    return [_drop_straight(_insert(borders.rings[number], detours[number])) for number in outlines]


def _roll_keys(detours: Mapping[int, Sequence[NDArray]], first: int, count: int) -> dict[int, Sequence[NDArray]]:
    return {(at - first) % count: others for at, others in detours.items()}


class _Borders(NamedTuple):
    """The borders between the pixels that are in and those that are out, as closed rings of unit steps."""

    rings: list[NDArray[np.int64]]
    """(N, 2) corners (x, y) each; what is in lies on the right of the direction walked (y points down)."""
    ring: NDArray[np.int64]
    """(h, w + 1) the ring that walks up along the left border of the pixel in row y and column x."""
    position: NDArray[np.int64]
    """(h, w + 1) where in that ring the step begins."""


def _follow_borders(pixels: NDArray[np.bool_]) -> _Borders:
    padded = np.zeros((pixels.shape[0] + 2, pixels.shape[1] + 2), bool)
    padded[1:-1, 1:-1] = pixels
    below_right, below_left = padded[1:, 1:], padded[1:, :-1]
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    # From the corner (x, y), a step along a border is taken where the pixel to its right is in, that to its left out.
    leaves = np.stack(
        [
            below_right & ~above_right,
            below_left & ~below_right,
            above_left & ~below_left,
            above_right & ~above_left,
        ]
    )
    direction, y, x = np.nonzero(leaves)
    number = np.full(leaves.shape, -1)
    number[direction, y, x] = np.arange(len(x))
    dx, dy = _STEPS[direction].T
    # Turning right first keeps pixels that touch at a corner apart.
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
    # A step up begins one row below the pixel.
    upward = number[3, 1:]
    return _Borders(rings, ring_of[upward], position_of[upward])


def _drop_straight(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """A ring of steps along the axes without the corners at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[(np.sign(before) != np.sign(after)).any(axis=1)]


def _signed_area(ring: NDArray[np.int64]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2

"""Masks → islands and their outlines, for the formats that hold polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from steelgen.data.runlength import encode_counts

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

    def trace_parts(self) -> list[list[NDArray[np.int64]]]:
        """Of each part its outline and, running the other way round, its holes; (N, 2) corners in the whole mask."""
        labels, count = scipy.ndimage.label(self.pixels)
        corner = np.array((self.left, self.top))
        return [[ring + corner for ring in trace_rings(labels == part)] for part in range(1, count + 1)]

    def trace(self) -> list[NDArray[np.int64]]:
        """One ring a part, its holes joined to it by bridges; see `join_rings`."""
        return [join_rings(outline, holes) for outline, *holes in self.trace_parts()]

    def encode(self) -> list[int]:
        """COCO's uncompressed counts."""
        whole = np.zeros(self.size, bool)
        height, width = self.pixels.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return encode_counts(whole)


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
    joined = outline
    for hole in holes:
        joined = _bridge(joined, hole[::-1] if _signed_area(hole) * _signed_area(outline) > 0 else hole)
    return joined


def join_even_odd(rings: Sequence[NDArray]) -> NDArray:
    """One ring, (N, 2), that winds around what an odd number of rings go around: outlines, holes, parts in holes.

    Rings may touch but not cross.
    """
    order = sorted((ring for ring in rings if _signed_area(ring)), key=lambda ring: -abs(_signed_area(ring)))
    joined = np.empty((0, 2))
    for number, ring in enumerate(order):
        inside = _find_inside(ring)
        depth = sum(_goes_around(larger, inside) for larger in order[:number])
        turned = ring if (_signed_area(ring) > 0) == (depth % 2 == 0) else ring[::-1]
        joined = _bridge(joined, turned) if len(joined) else turned
    return joined


def _bridge(ring: NDArray, other: NDArray) -> NDArray:
    """Walks from a ring to another one, around it, and back."""
    # Rings are paths of few corners: all pairs is little work.
    distance = np.abs(ring[:, None] - other[None]).sum(axis=2)
    at, first = np.unravel_index(int(distance.argmin()), distance.shape)
    return np.concatenate([ring[: at + 1], other[first:], other[: first + 1], ring[at:]])


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


def trace_rings(island: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Closed rings along the pixel borders of a 4-connected island, (N, 2) corners (x, y) each.

    The island lies on the right of the direction walked (y points down). The outline comes first, then the
    holes, which run the other way round.
    """
    padded = np.pad(island, 1)
    here = padded[1:, 1:], padded[1:, :-1], padded[:-1, :-1], padded[:-1, 1:]
    below_right, below_left, above_left, above_right = here
    # From the corner (x, y), a step along a border is taken where the pixel to its right is in, that to its left out.
    leaves = np.stack(
        [
            below_right & ~above_right,
            below_left & ~below_right,
            above_left & ~below_left,
            above_right & ~above_left,
        ]
    )
    rings = []
    while leaves.any():
        direction, y, x = (int(value) for value in np.argwhere(leaves)[0])
        corners = []
        while leaves[direction, y, x]:
            leaves[direction, y, x] = False
            corners.append((x, y))
            dx, dy = _STEPS[direction]
            x, y = x + int(dx), y + int(dy)
            # Turning right first keeps pixels that touch at a corner apart.
            direction = next(
                (turn for turn in ((direction + 1) % 4, direction, (direction + 3) % 4) if leaves[turn, y, x]),
                direction,
            )
        rings.append(_drop_straight(np.array(corners)))
    return sorted(rings, key=lambda ring: -abs(_signed_area(ring)))


def _drop_straight(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ring without the corners at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[(before != after).any(axis=1)]


def _signed_area(ring: NDArray[np.int64]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2

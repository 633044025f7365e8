"""Area-preserving rasterization of polygons.

Coordinates are continuous: pixel (row r, column c) is the unit square from (x, y) = (c, r) to (c + 1, r + 1), so a
vertex at x = width is on the right edge of the image.

Selecting the pixels whose centers are inside is right on average, but a single island of radius 6 px misses its area by
1-2 %. Here the covered share of each pixel is computed exactly, and an island of area A gets the round(A) pixels with
the largest share, so its area is off by half a pixel at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Coverage(NamedTuple):
    """Share of each pixel that a region covers, within the bounding box of the region."""

    top: int
    left: int
    share: NDArray[np.float64]
    """(h, w) in [0, 1]."""

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box in the image."""
        height, width = self.share.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def compute_coverage(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> Coverage:
    """Computes the exact share of each pixel that the union of polygons covers.

    Parts outside the image are cut off. Polygons are filled by the nonzero winding rule: both wings of a bow tie are
    filled, and a bridge to an inner ring leaves a hole.

    Args:
        polygons: (N, 2) finite vertices (x, y) each; the ring closes itself.
        height, width: image size in pixels.
    """
    corners = np.concatenate([*polygons, np.empty((0, 2))])
    if not len(corners):
        return Coverage(0, 0, np.zeros((0, 0)))
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), (left, top), (width, height)).astype(int)
    share = np.zeros((bottom - top, right - left))
    if share.size:
        for polygon in polygons:
            np.maximum(share, _cover(polygon - (left, top), *share.shape), out=share)
    return Coverage(int(top), int(left), share)


def select_pixels(share: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Selects the round(sum of shares) pixels of the largest share, as an (h, w) boolean mask."""
    selected = share > 1 - 1e-9
    rows, columns = np.nonzero((share > 1e-9) & ~selected)
    missing = int(np.floor(share[rows, columns].sum() + 0.5))
    # Straight edges have equal shares: selecting them from alternate rows keeps the edge in place.
    order = np.lexsort((columns, rows, rows % 2, -share[rows, columns].round(9)))[:missing]
    selected[rows[order], columns[order]] = True
    return selected


def _cover(ring: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Computes (height, width) covered shares by summing the signed area to the right of each edge segment."""
    start = _split_at_grid(ring, height, width)
    end = np.roll(start, -1, axis=0)
    rise = end[:, 1] - start[:, 1]
    x, y = ((start + end) / 2).T
    inside = (y > 0) & (y < height) & (x < width) & (rise != 0)
    rise, x, y = rise[inside], np.maximum(x[inside], 0), y[inside]
    row, column = np.floor(y).astype(int), np.minimum(np.floor(x).astype(int), width - 1)
    position = row * (width + 1) + column
    # A segment covers the right part of its pixel, and the whole width of every pixel further right.
    steps = np.bincount(position, rise * (column + 1 - x), height * (width + 1))
    steps += np.bincount(position + 1, rise * (x - column), height * (width + 1))
    winding = np.cumsum(steps.reshape(height, width + 1), axis=1)[:, :width]
    return np.minimum(np.abs(winding), 1)


def _split_at_grid(ring: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Adds a vertex at each crossing of the closed ring with a pixel border in the image."""
    step = np.roll(ring, -1, axis=0) - ring
    edges = [np.arange(len(ring))]
    fractions = [np.zeros(len(ring))]
    for axis, limit in ((0, width), (1, height)):
        low = np.minimum(ring[:, axis], ring[:, axis] + step[:, axis])
        high = np.maximum(ring[:, axis], ring[:, axis] + step[:, axis])
        first = np.clip(np.floor(low) + 1, 0, limit + 1).astype(int)
        count = np.maximum(np.clip(np.ceil(high), 0, limit + 1).astype(int) - first, 0)
        edge = np.repeat(np.arange(len(ring)), count)
        line = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        edges.append(edge)
        fractions.append((line - ring[edge, axis]) / step[edge, axis])
    edge, fraction = np.concatenate(edges), np.concatenate(fractions)
    order = np.lexsort((fraction, edge))
    edge, fraction = edge[order], fraction[order]
    return ring[edge] + fraction[:, None] * step[edge]

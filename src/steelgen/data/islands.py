"""Islands of a class: pixels that touch along edges or at corners, and their figures by sums over all at once.

Corners count (8 neighbors), as where image analyzers count the features of a phase (ASTM E1245) and where ISDM counts
objects: a thin film that runs diagonally stays one island, and the matrix around islands is what touches along edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Island(NamedTuple):
    """An island in a mask."""

    label: int
    """Its class."""
    window: tuple[slice, slice]
    """Rows and columns of its bounding box."""
    footprint: NDArray[np.bool_]
    """(h, w) within the bounding box."""
    touches_border: bool


@dataclass(frozen=True)
class IslandFigures:
    """The islands of one class in one image, one row each; lengths in px."""

    labels: NDArray[np.int32]
    """(H, W): row + 1 of each island, 0 outside."""
    area: NDArray[np.float64]
    boxes: NDArray[np.int64]
    """(K, 4) first row and column, and those after the last."""
    centers: NDArray[np.float64]
    """(K, 2) y, x."""
    aspect_ratio: NDArray[np.float64]
    """Length over width of the ellipse with the same second moments, a pixel being a unit square."""
    angle: NDArray[np.float64]
    """Of the long axis, radians from the x axis towards y."""

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(K,) which of them the border does not cut."""
        inside = np.concatenate([self.boxes[:, :2] > 0, self.boxes[:, 2:] < self.labels.shape], axis=1)
        return np.all(inside, axis=1)


def label_islands(phase: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The number of the island that each pixel of a phase (H, W) lies in, from 1 on, 0 outside; and how many."""
    from scipy import ndimage

    return ndimage.label(phase, np.ones((3, 3)))


def compute_island_areas(phase: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels of each island of a phase (H, W)."""
    return np.bincount(label_islands(phase)[0].ravel())[1:]


def find_islands(mask: NDArray[np.uint8], label: int) -> Iterator[Island]:
    """The islands of one class in a mask (H, W)."""
    from scipy import ndimage

    labels, _ = label_islands(mask == label)
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        touches = any(part.start == 0 or part.stop == size for part, size in zip(window, mask.shape, strict=True))
        yield Island(label, window, labels[window] == number, touches)


def measure_islands(phase: NDArray[np.bool_]) -> IslandFigures:
    """Measures all islands of a phase (H, W)."""
    from scipy import ndimage

    labels, count = label_islands(phase)
    y, x = np.nonzero(labels)
    rows = labels[y, x] - 1
    area = np.bincount(rows, minlength=count).astype(np.float64)

    def mean(values: NDArray) -> NDArray[np.float64]:
        return np.bincount(rows, values, minlength=count) / area

    center_y, center_x = mean(y), mean(x)
    # 1/12 is a unit square's own second moment.
    yy, xx = mean(y**2) - center_y**2 + 1 / 12, mean(x**2) - center_x**2 + 1 / 12
    xy = mean(x * y) - center_x * center_y
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    boxes = [[part.start for part in box] + [part.stop for part in box] for box in ndimage.find_objects(labels)]
    return IslandFigures(
        labels=labels,
        area=area,
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
        centers=np.stack([center_y, center_x], axis=1),
        aspect_ratio=np.sqrt((middle + spread) / (middle - spread)),
        angle=np.arctan2(2 * xy, xx - yy) / 2,
    )

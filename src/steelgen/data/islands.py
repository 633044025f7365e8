"""Islands: 8-connected regions of a class, and their shape figures.

Pixels that touch at corners are connected, as in feature counts of image analyzers (ASTM E1245) and in ISDM: a thin
diagonal film is one island.
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
    """Class index."""
    window: tuple[slice, slice]
    """Rows and columns of its bounding box."""
    footprint: NDArray[np.bool_]
    """(h, w) within the bounding box."""
    touches_border: bool


@dataclass(frozen=True)
class IslandFigures:
    """Shape figures of the K islands of one class in one image, in px."""

    labels: NDArray[np.int32]
    """(H, W): row + 1 of each island, 0 outside."""
    area: NDArray[np.float64]
    boxes: NDArray[np.int64]
    """(K, 4) first row and column, last row and column + 1."""
    centers: NDArray[np.float64]
    """(K, 2) y, x."""
    aspect_ratio: NDArray[np.float64]
    """Length / width of the ellipse with the same second moments, with pixels as unit squares."""
    angle: NDArray[np.float64]
    """Angle of the long axis, in radians from the x axis towards y."""

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(K,) whether the image border does not cut the island."""
        inside = np.concatenate([self.boxes[:, :2] > 0, self.boxes[:, 2:] < self.labels.shape], axis=1)
        return np.all(inside, axis=1)


def label_islands(phase: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Labels the islands of an (H, W) phase: (H, W) with 1 … K, 0 outside; and K."""
    from scipy import ndimage

    return ndimage.label(phase, np.ones((3, 3)))


def compute_island_areas(phase: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Computes the area in px of each island of an (H, W) phase."""
    return np.bincount(label_islands(phase)[0].ravel())[1:]


def find_islands(mask: NDArray[np.uint8], label: int) -> Iterator[Island]:
    """Yields the islands of one class in an (H, W) mask."""
    from scipy import ndimage

    labels, _ = label_islands(mask == label)
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        touches = any(part.start == 0 or part.stop == size for part, size in zip(window, mask.shape, strict=True))
        yield Island(label, window, labels[window] == number, touches)


def measure_islands(phase: NDArray[np.bool_]) -> IslandFigures:
    """Measures all islands of an (H, W) phase."""
    from scipy import ndimage

    labels, count = label_islands(phase)
    y, x = np.nonzero(labels)
    rows = labels[y, x] - 1
    area = np.bincount(rows, minlength=count).astype(np.float64)

    def mean(values: NDArray) -> NDArray[np.float64]:
        return np.bincount(rows, values, minlength=count) / area

    center_y, center_x = mean(y), mean(x)
    # 1/12 is the second moment of a unit square.
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

"""Islands cut out of masks: turning them, placing them without overlap, and meeting an area exactly."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from steelgen.data.islands import find_islands

_MIN_TURNED_AREA = 20
"""px; smaller islands are turned by quarter turns alone, since resampling would change their area."""
_TRIES = 30


def find_matrix(masks: list[NDArray[np.uint8]], num_classes: int) -> int:
    """The class that covers most of a set of masks: what islands are embedded in."""
    counts = np.sum([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks], axis=0)
    return int(np.argmax(counts))


def turn_footprint(footprint: NDArray[np.bool_], angle: float, scale: float) -> NDArray[np.bool_]:
    """Turns an island by `angle` degrees and scales its length; its area becomes scale² of what it was, to the pixel.

    Args:
        footprint: (h, w).

    Returns:
        (h', w'), without empty rows or columns at its edges.
    """
    area = int(footprint.sum())
    wanted = max(1, round(area * scale**2))
    if area < _MIN_TURNED_AREA:
        return np.rot90(footprint, round(angle / 90) % 4)
    # The signed distance is smooth, so that interpolating it loses neither thin parts nor the outline.
    margin = int(np.ceil(max(footprint.shape) * (scale + 1))) // 2 + 2
    padded = np.pad(footprint, margin)
    distance = scipy.ndimage.distance_transform_edt(padded) - scipy.ndimage.distance_transform_edt(~padded)
    cosine, sine = np.cos(np.radians(angle)) / scale, np.sin(np.radians(angle)) / scale
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    center = (np.array(padded.shape) - 1) / 2
    turned = scipy.ndimage.affine_transform(distance, matrix, center - matrix @ center, order=1, cval=-np.inf)
    return trim(take_highest(turned, wanted))


def trim(footprint: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cuts away empty rows and columns at the edges."""
    rows, columns = np.flatnonzero(footprint.any(axis=1)), np.flatnonzero(footprint.any(axis=0))
    return footprint[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place_island(
    mask: NDArray[np.uint8], footprint: NDArray[np.bool_], label: int, matrix: int, top: int, left: int
) -> bool:
    """Draws an island into a mask if it and the pixels around it lie on the matrix; what lies outside is cut off.

    Returns:
        Whether it was drawn.
    """
    height, width = footprint.shape
    rows = slice(max(top, 0), min(top + height, mask.shape[0]))
    columns = slice(max(left, 0), min(left + width, mask.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return False
    part = footprint[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if not part.any() or (mask[rows, columns][part] != matrix).any():
        return False
    around = (
        slice(max(rows.start - 1, 0), min(rows.stop + 1, mask.shape[0])),
        slice(max(columns.start - 1, 0), min(columns.stop + 1, mask.shape[1])),
    )
    ring = np.zeros((around[0].stop - around[0].start, around[1].stop - around[1].start), bool)
    inside = (
        slice(rows.start - around[0].start, rows.stop - around[0].start),
        slice(columns.start - around[1].start, columns.stop - around[1].start),
    )
    ring[inside] = part
    grown = scipy.ndimage.binary_dilation(ring, np.ones((3, 3)))
    if (mask[around][grown] != matrix).any():
        return False
    mask[rows, columns][part] = label
    return True


def place_anywhere(
    mask: NDArray[np.uint8], footprint: NDArray[np.bool_], label: int, matrix: int, rng: np.random.Generator
) -> bool:
    """Draws an island at a random place where it fits wholly; see `place_island`."""
    room = np.array(mask.shape) - footprint.shape
    if (room < 0).any():
        return False
    for _ in range(_TRIES):
        top, left = (int(rng.integers(size + 1)) for size in room)
        if place_island(mask, footprint, label, matrix, top, left):
            return True
    return False


def meet_area(mask: NDArray[np.uint8], label: int, matrix: int, wanted: int, rng: np.random.Generator) -> None:
    """Brings a class to exactly `wanted` pixels, in place, as far as the matrix gives or takes them.

    Too much: whole islands go, in random order; the last one shrinks from its outline. Too little: islands grow.
    """
    excess = int((mask == label).sum()) - wanted
    if excess > 0:
        islands = list(find_islands(mask, label))
        for number in rng.permutation(len(islands)):
            island = islands[number]
            view, area = mask[island.window], int(island.footprint.sum())
            if area <= excess:
                view[island.footprint] = matrix
                excess -= area
            elif excess > 0:
                depth = scipy.ndimage.distance_transform_edt(np.pad(island.footprint, 1))[1:-1, 1:-1]
                view[island.footprint & ~take_highest(np.where(island.footprint, depth, -np.inf), area - excess)] = (
                    matrix
                )
                excess = 0
    elif excess < 0 and (mask == label).any():
        nearness = -scipy.ndimage.distance_transform_edt(mask != label)
        free = mask == matrix
        nearness[~free] = -np.inf
        mask[take_highest(nearness, min(-excess, int(free.sum())))] = label


def smooth_noise(shape: tuple[int, int], length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random field (H, W) with mean 0 and standard deviation 1 that changes over a distance of `length` px.

    Distances beyond a third of the field are taken as that: what is flat has no deviation to bring to 1.
    """
    field = scipy.ndimage.gaussian_filter(rng.normal(size=shape), min(length / 2, min(shape) / 6), mode="wrap")
    return (field - field.mean()) / max(float(field.std()), 1e-12)


def take_highest(values: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The `count` pixels of the highest values; the earlier of equal ones."""
    chosen = np.zeros(values.size, bool)
    chosen[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(values.shape)

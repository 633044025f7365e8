"""Footprints of islands: rotation, placement without overlap, and exact control of a class's area."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from steelgen.data.islands import find_islands

_MIN_ROTATED_AREA = 20
"""px; smaller islands rotate only by quarter turns, since resampling would change their area."""
_ATTEMPTS = 30


def find_matrix(masks: list[NDArray[np.uint8]], num_classes: int) -> int:
    """Returns the class that covers most of a set of masks, in which islands are embedded."""
    return int(np.sum([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks], axis=0).argmax())


def rotate_footprint(footprint: NDArray[np.bool_], angle: float, scale: float) -> NDArray[np.bool_]:
    """Rotates an island by `angle` degrees and scales its length, which scales its area by exactly scale².

    Args:
        footprint: (h, w).

    Returns:
        (h', w'), without empty rows or columns at its edges.
    """
    area = int(footprint.sum())
    if area < _MIN_ROTATED_AREA:
        return np.rot90(footprint, round(angle / 90) % 4)
    # The signed distance is smooth: interpolating it preserves thin parts and the outline.
    margin = int(np.ceil(max(footprint.shape) * (scale + 1))) // 2 + 2
    padded = np.pad(footprint, margin)
    distance = scipy.ndimage.distance_transform_edt(padded) - scipy.ndimage.distance_transform_edt(~padded)
    cosine, sine = np.cos(np.radians(angle)) / scale, np.sin(np.radians(angle)) / scale
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    center = (np.array(padded.shape) - 1) / 2
    turned = scipy.ndimage.affine_transform(distance, matrix, center - matrix @ center, order=1, cval=-np.inf)
    return trim(select_highest(turned, max(1, round(area * scale**2))))


def trim(footprint: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Crops empty rows and columns at the edges."""
    return footprint[scipy.ndimage.find_objects(footprint.astype(np.uint8))[0]]


def place_island(
    mask: NDArray[np.uint8], footprint: NDArray[np.bool_], label: int, matrix: int, top: int, left: int
) -> bool:
    """Paints an island into a mask if it and its neighboring pixels lie in the matrix; the border may cut it.

    Returns:
        Whether the island was painted.
    """
    height, width = footprint.shape
    rows = slice(min(max(top, 0), mask.shape[0]), max(min(top + height, mask.shape[0]), 0))
    columns = slice(min(max(left, 0), mask.shape[1]), max(min(left + width, mask.shape[1]), 0))
    view = mask[rows, columns]
    part = footprint[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if not part.any() or (view[part] != matrix).any():
        return False
    around = mask[max(rows.start - 1, 0) : rows.stop + 1, max(columns.start - 1, 0) : columns.stop + 1]
    grown = scipy.ndimage.binary_dilation(np.pad(part, 1), np.ones((3, 3)))
    # Without the rows and columns outside the mask.
    grown = grown[int(rows.start == 0) :, int(columns.start == 0) :][: around.shape[0], : around.shape[1]]
    if (around[grown] != matrix).any():
        return False
    view[part] = label
    return True


def place_anywhere(
    mask: NDArray[np.uint8], footprint: NDArray[np.bool_], label: int, matrix: int, rng: np.random.Generator
) -> bool:
    """Paints an island, uncut, at a random free place; see `place_island`."""
    room = np.array(mask.shape) - footprint.shape
    if (room < 0).any():
        return False
    for _ in range(_ATTEMPTS):
        top, left = (int(rng.integers(size + 1)) for size in room)
        if place_island(mask, footprint, label, matrix, top, left):
            return True
    return False


def adjust_area(mask: NDArray[np.uint8], label: int, matrix: int, wanted: int, rng: np.random.Generator) -> None:
    """Adjusts a class to exactly `wanted` pixels, in place, as far as the matrix allows.

    To shrink it, whole islands are removed in random order and the last one is eroded. To grow it, islands are dilated.
    """
    excess = int((mask == label).sum()) - wanted
    if excess > 0:
        islands = list(find_islands(mask, label))
        for number in rng.permutation(len(islands)):
            _, window, removed, _ = islands[number]
            area = int(removed.sum())
            if area > excess:
                depth = scipy.ndimage.distance_transform_edt(np.pad(removed, 1))[1:-1, 1:-1]
                removed = removed & ~select_highest(depth, area - excess)
            mask[window][removed] = matrix
            excess -= int(removed.sum())
            if excess == 0:
                return
    elif excess < 0 and (mask == label).any():
        nearness = -scipy.ndimage.distance_transform_edt(mask != label)
        free = mask == matrix
        nearness[~free] = -np.inf
        mask[select_highest(nearness, min(-excess, int(free.sum())))] = label


def smooth_noise(shape: tuple[int, int], length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Samples a random field (H, W) of mean 0 and standard deviation 1 with a correlation length of `length` px.

    The length is limited to a third of the field, since a flat field cannot be scaled to standard deviation 1.
    """
    field = scipy.ndimage.gaussian_filter(rng.normal(size=shape), min(length / 2, min(shape) / 6), mode="wrap")
    return (field - field.mean()) / max(float(field.std()), 1e-12)


def select_highest(values: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Selects the `count` pixels of the highest values; ties go to the earlier pixel."""
    chosen = np.zeros(values.size, bool)
    chosen[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(values.shape)

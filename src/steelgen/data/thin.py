"""Shrinking of masks by a whole factor so that thin classes survive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shrink_mask(mask: NDArray[np.uint8], factor: int, ignore_index: int = 255) -> NDArray[np.uint8]:
    """Shrinks a mask (H, W) to (ceil(H / factor), ceil(W / factor)).

    A pixel gets the class that covers most of it. Lines, which would be lost or break, win over all other classes where
    they cover at least 1 / (2·factor) of a pixel, half of what a line of 1 px across it covers, so that they stay
    connected; the thinnest class wins over the others. Dots are no lines: they would grow. Edges that are no multiple
    of the factor are repeated.
    """
    if factor == 1:
        return mask
    padded = np.pad(mask, [(0, -edge % factor) for edge in mask.shape], mode="edge")
    present = np.unique(mask)
    covered = [_count_covered(padded == index, factor) for index in present]
    shrunken = present[np.argmax(covered, axis=0)].astype(np.uint8)
    widths = {index: compute_mean_width(mask == index) for index in present if index != ignore_index}
    for index in sorted(widths, key=widths.__getitem__, reverse=True):  # the thinnest last, over all others
        lines = find_lines(padded == index, factor)
        shrunken[_count_covered(lines, factor) >= factor / 2] = index
    return shrunken


def find_lines(phase: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Finds the parts of a phase (H, W) that are at most `width` px wide and extend over at least twice as much.

    Thin parts are what an opening by a square of width + 1 removes; the phase continues beyond the image's edge.
    """
    from scipy.ndimage import find_objects, grey_opening, label

    values = phase.astype(np.uint8)
    thin = values > grey_opening(values, size=(width + 1, width + 1), mode="nearest")
    parts, _ = label(thin, np.ones((3, 3)))
    extents = [max(extent.stop - extent.start for extent in box) for box in find_objects(parts)]
    return np.array([False, *(extent >= 2 * width for extent in extents)])[parts]


def compute_mean_width(phase: NDArray[np.bool_]) -> float:
    """Computes the mean width of a phase (H, W) in pixels, 2·area / boundary length; infinite without a boundary.

    The boundary is the number of pixel edges between the phase and other pixels. The image's edge is no boundary.
    """
    boundary = int((phase[1:] != phase[:-1]).sum() + (phase[:, 1:] != phase[:, :-1]).sum())
    return 2 * int(phase.sum()) / boundary if boundary else float("inf")


def _count_covered(phase: NDArray[np.bool_], factor: int) -> NDArray[np.int32]:
    """Counts the pixels of a phase in each square of edge `factor`."""
    rows, columns = (edge // factor for edge in phase.shape)
    return phase.reshape(rows, factor, columns, factor).sum(axis=(1, 3), dtype=np.int32)

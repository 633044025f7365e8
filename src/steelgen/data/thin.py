"""Shrinking of masks by a whole factor so that thin classes survive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_THIN_PX = 2
"""Mean width, in shrunken pixels, below which a class is thin; thinner than two samples it would disappear."""


def shrink_mask(mask: NDArray[np.uint8], factor: int, ignore_index: int = 255) -> NDArray[np.uint8]:
    """Shrinks a mask (H, W) to (ceil(H / factor), ceil(W / factor)).

    A pixel gets the thinnest of the thin classes that cover at least 1 / (2·factor) of it, half of what a line of 1 px
    across it covers, so that lines stay connected; else the class that covers most of it. Edges that are no multiple of
    the factor are repeated.
    """
    if factor == 1:
        return mask
    padded = np.pad(mask, [(0, -edge % factor) for edge in mask.shape], mode="edge")
    rows, columns = (edge // factor for edge in padded.shape)
    present = np.unique(mask)
    covered = [
        (padded == index).reshape(rows, factor, columns, factor).sum(axis=(1, 3), dtype=np.int32) for index in present
    ]
    shrunken = present[np.argmax(covered, axis=0)].astype(np.uint8)
    widths = {int(index): compute_mean_width(mask == index) for index in present if index != ignore_index}
    thin = sorted((index for index in widths if widths[index] < _THIN_PX * factor), key=widths.__getitem__)
    for index in reversed(thin):  # the thinnest last, over all others
        shrunken[covered[int(np.searchsorted(present, index))] >= factor / 2] = index
    return shrunken


def compute_mean_width(phase: NDArray[np.bool_]) -> float:
    """Computes the mean width of a phase (H, W) in pixels, 2·area / boundary length; infinite without a boundary.

    The boundary is the number of pixel edges between the phase and other pixels; it is longer than that of a smooth
    outline by a factor of at most √2. The image's edge is no boundary.
    """
    boundary = int((phase[1:] != phase[:-1]).sum() + (phase[:, 1:] != phase[:, :-1]).sum())
    return 2 * int(phase.sum()) / boundary if boundary else float("inf")

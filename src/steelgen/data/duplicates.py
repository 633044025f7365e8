"""Near-duplicate images under flips and rotations: a leak if they are in different splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EDGE = 32
_FREQUENCIES = 8
_MAX_BITS = 10
_MIN_CORRELATION = 0.9


def shrink_image(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrinks an (H, W) or (H, W, 3) uint8 image for comparison.

    Returns:
        (32, 32) float32 with mean 0 and norm 1; all zero for a uniform image.
    """
    small = Image.fromarray(image).convert("L").resize((_EDGE, _EDGE), Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float32)
    gray = gray - gray.mean()
    norm = float(np.linalg.norm(gray))
    return gray / norm if norm > 1e-3 else np.zeros_like(gray)


def compute_hash(shrunken: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Computes the perceptual hash of shrunken images (..., 32, 32): the signs of 63 low DCT coefficients."""
    from scipy.fft import dctn

    spectrum = dctn(shrunken, axes=(-2, -1))[..., :_FREQUENCIES, :_FREQUENCIES]
    return spectrum.reshape(*shrunken.shape[:-2], -1)[..., 1:] > 0


def find_duplicates(shrunken: Sequence[NDArray[np.float32]], groups: Sequence[str]) -> list[tuple[int, int, float]]:
    """Finds near-duplicates in different groups, under any of the 8 flips and rotations.

    Candidates differ in at most 10 of 63 hash bits; they are reported if their gray levels correlate by at least 0.9.

    Args:
        shrunken: result of `shrink_image` for each image.
        groups: split of each image; pairs within a split are not reported.

    Returns:
        (first index, second index, correlation at the best flip or rotation) of each pair.
    """
    if not shrunken:
        return []
    stack = np.stack(shrunken)
    signs = np.where(compute_hash(stack), 1.0, -1.0).astype(np.float32)
    found: dict[tuple[int, int], float] = {}
    numbered = np.unique(np.asarray(groups, np.str_), return_inverse=True)[1]
    for symmetry in range(8):
        turned = np.rot90(stack, symmetry % 4, axes=(1, 2))
        turned = turned[..., ::-1] if symmetry >= 4 else turned
        turned_signs = np.where(compute_hash(turned), 1.0, -1.0).astype(np.float32)
        for first in range(len(stack)):
            later = slice(first + 1, None)
            differing = (signs.shape[1] - turned_signs[later] @ signs[first]) / 2
            candidates = np.flatnonzero((differing <= _MAX_BITS) & (numbered[later] != numbered[first])) + first + 1
            for second in candidates:
                correlation = float((stack[first] * turned[second]).sum())
                if correlation >= _MIN_CORRELATION:
                    pair = (first, int(second))
                    found[pair] = max(found.get(pair, 0.0), correlation)
    return [(first, second, correlation) for (first, second), correlation in sorted(found.items())]

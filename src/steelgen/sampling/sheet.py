"""Sheets of triples: mask, generated image, real image of the same mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import save_image, to_channels
from steelgen.data.palette import color_mask

_GAP = 4


def save_sheet(
    path: Path,
    masks: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    generated: Sequence[NDArray[np.uint8]],
    real: Sequence[NDArray[np.uint8] | None],
    palette: list[tuple[int, int, int]],
    max_per_row: int = 4,
    max_width: int = 1600,
    min_tile: int = 128,
) -> None:
    """Writes a PNG of mask | generated | real triples, row by row; without classes, of generated | real.

    Args:
        masks: (H, W) uint8 class indices each; not looked at where the palette is empty.
        generated: (H, W) or (H, W, 3) uint8 each.
        real: the micrograph that belongs to the mask, or None where there is none.
        max_per_row, max_width: so many triples stand side by side at most, in as many pixels (one is always shown).
        min_tile: smaller tiles are enlarged by a whole factor, each pixel a square.
    """
    factor = max(1, min_tile // generated[0].shape[0])
    tiles = []
    for index, drawn in enumerate(generated):
        parts = [color_mask(masks[index], palette)] if palette else []
        parts.append(to_channels(drawn, 3))
        original = real[index]
        if original is not None:
            parts.append(to_channels(original, 3))
        tiles.append(np.concatenate(parts, axis=1))
    widest = factor * max(tile.shape[1] for tile in tiles)
    across = max(1, min(max_per_row, max_width // widest))
    rows = [_join(tiles[start : start + across], axis=1) for start in range(0, len(tiles), across)]
    save_image(path, _join(rows, axis=0).repeat(factor, axis=0).repeat(factor, axis=1))


def _join(tiles: list[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Joins tiles along an axis with a white gap between them; shorter ones are filled up in white."""
    across = max(tile.shape[1 - axis] for tile in tiles)
    parts = []
    for tile in tiles:
        missing = [(0, 0), (0, 0), (0, 0)]
        missing[1 - axis] = (0, across - tile.shape[1 - axis])
        missing[axis] = (0, _GAP)
        parts.append(np.pad(tile, missing, constant_values=255))
    joined = np.concatenate(parts, axis=axis)
    return joined[:, :-_GAP] if axis else joined[:-_GAP]

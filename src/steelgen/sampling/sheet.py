"""Contact sheets of masks, generated images and real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import save_image, to_channels
from steelgen.data.palette import color_mask
from steelgen.data.placement import resize_image

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
    """Writes a PNG of mask | generated | real triples, or generated | real pairs if there are no classes.

    Args:
        masks: (H, W) uint8 class indices each; not used if the palette is empty.
        generated: (H, W) or (H, W, 3) uint8 each.
        real: the micrograph of each mask, or the image it was generated from; None if there is none.
        max_per_row: maximum number of triples per row.
        max_width: maximum width of a row, px; a row has at least one triple.
        min_tile: smaller images are enlarged by a whole factor, without interpolation.
    """
    factor = max(1, min_tile // generated[0].shape[0])
    tiles = []
    for index, images in enumerate(zip(generated, real, strict=True)):
        parts = [color_mask(masks[index], palette)] if palette else []
        # The coarse images of a refining generator are enlarged.
        parts += [resize_image(to_channels(image, 3), *images[0].shape[:2]) for image in images if image is not None]
        tiles.append(np.concatenate(parts, axis=1))
    widest = factor * max(tile.shape[1] for tile in tiles)
    per_row = max(1, min(max_per_row, max_width // widest))
    rows = [_join(tiles[start : start + per_row], axis=1) for start in range(0, len(tiles), per_row)]
    save_image(path, _join(rows, axis=0).repeat(factor, axis=0).repeat(factor, axis=1))


def _join(tiles: list[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Concatenates tiles along an axis with white gaps; smaller tiles are padded with white."""
    longest = max(tile.shape[1 - axis] for tile in tiles)
    padded = []
    for tile in tiles:
        padding = np.zeros((3, 2), int)
        padding[1 - axis, 1], padding[axis, 1] = longest - tile.shape[1 - axis], _GAP
        padded.append(np.pad(tile, padding, constant_values=255))
    joined = np.concatenate(padded, axis=axis)
    return joined[:, :-_GAP] if axis else joined[:-_GAP]

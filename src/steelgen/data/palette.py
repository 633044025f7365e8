"""Colours for class indices."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito (2008): distinguishable with every common colour-vision deficiency. Background first, in black.
_OKABE_ITO = [
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
]


def default_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """`num_classes` RGB colours (0-255): Okabe-Ito for the first eight, then hues by the golden ratio."""
    extra = [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(0.618034 * index % 1, 0.55, 0.95))
        for index in range(num_classes - len(_OKABE_ITO))
    ]
    return (_OKABE_ITO + extra)[:num_classes]  # type: ignore[return-value]


def color_mask(mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Colours a mask of class indices (H, W) as (H, W, 3) uint8 RGB; indices without a colour are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def blend_overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    palette: list[tuple[int, int, int]],
    opacity: float = 0.4,
) -> NDArray[np.uint8]:
    """Lays the colours of a mask over its micrograph; class 0 and ignored pixels stay as they are.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) uint8 class indices.
        opacity: 0 shows the image alone, 1 the colours alone.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    shown = (mask > 0) & (mask < len(palette))
    blended = (1 - opacity) * rgb + opacity * color_mask(mask, palette)
    return np.where(shown[..., None], blended.round().astype(np.uint8), rgb)

"""Default names and colors of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import to_channels

# Okabe and Ito (2008), distinguishable with every common color-vision deficiency; black for the background.
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
_ISDM = """
000000 010067 d5ff00 ff0056 9e008e 0e4ca1 ffe502 005f39 00ff00 95003a ff937e a42400 001544 91d0cb 620e00 6b6882
0000ff 007db5 6a826c 00ae7e c28ca0 be9970 008f9c 5fad4e ff0000 ff00f6 ff029d 683d3b ff74a3 968ae8 98ff52 a75740
01fffe ffeee8 fe8900 bdc6ff 01d0ff bb8800 7544b1 a5ffd2 ffa6fe 774d00 7a4782 263400 004754 43002c b500ff ffb167
ffdb66 90fb92 7e2dd2 bdd393 e56ffe deff74 00ff78 009bff 006401 0076ff 85a900 00b917 788231 00ffc6 ff6e41 e85ebe
"""


def name_classes(values: NDArray[np.intp]) -> list[str]:
    """Returns class_0, class_1, … up to the highest mask value below 255."""
    return [f"class_{index}" for index in range(int(values[values < 255].max(initial=0)) + 1)]


def default_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Returns `num_classes` RGB colors (0-255): eight of Okabe and Ito, then hues spaced by the golden ratio."""
    extra = [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(0.618034 * index % 1, 0.55, 0.95))
        for index in range(num_classes - len(_OKABE_ITO))
    ]
    return (_OKABE_ITO + extra)[:num_classes]  # type: ignore[return-value]


def isdm_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Returns `num_classes` RGB colors (0-255): the 64 of ISDM, then those of `default_palette`."""
    colors: list[tuple[int, int, int]] = [(*bytes.fromhex(color),) for color in _ISDM.split()]
    return (colors + default_palette(num_classes)[len(colors) :])[:num_classes]


def color_mask(mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Converts an (H, W) mask to (H, W, 3) uint8 RGB; indices without a color are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = np.reshape(palette, (-1, 3))
    return table[mask]


def match_colors(
    rgb: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]], tolerance: int = 0
) -> NDArray[np.int64]:
    """Finds the nearest color for each pixel.

    Args:
        rgb: (H, W, 3) uint8.
        tolerance: largest difference per channel, 0-255.

    Returns:
        (H, W) indices into `colors`; −1 if none is within the tolerance.
    """
    best = np.full(rgb.shape[:2], -1)
    least = np.full(rgb.shape[:2], tolerance + 1)
    for index, color in enumerate(colors):
        distance = np.abs(rgb.astype(np.int16) - np.array(color, np.int16)).max(axis=2)
        nearer = distance < least
        best[nearer], least[nearer] = index, distance[nearer]
    return best


def blend_overlay(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: list[tuple[int, int, int]], opacity: float = 0.4
) -> NDArray[np.uint8]:
    """Blends the colors of a mask into its image; class 0 and ignored pixels keep the image's gray.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) uint8 class indices.
        opacity: 0 shows the image only, 1 the colors only.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rgb = to_channels(image, 3)
    shown = (mask > 0) & (mask < len(palette))
    blended = (1 - opacity) * rgb + opacity * color_mask(mask, palette)
    return np.where(shown[..., None], blended.round().astype(np.uint8), rgb)

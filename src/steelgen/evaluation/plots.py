"""Sheets of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def build_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], tile: int, gap: int = 4) -> NDArray[np.uint8]:
    """Images side by side on white.

    Args:
        rows: square images, (S, S) or (S, S, 3) uint8; every row has as many.
        tile: edge of each on the sheet, px; images are enlarged by whole pixels' repetition, or shrunk by area.
        gap: px between them.

    Returns:
        (H, W, 3) uint8.
    """
    step = tile + gap
    sheet = np.full((len(rows) * step - gap, len(rows[0]) * step - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            method = Image.Resampling.NEAREST if image.shape[0] < tile else Image.Resampling.BOX
            picture = Image.fromarray(image).convert("RGB").resize((tile, tile), method)
            sheet[i * step : i * step + tile, j * step : j * step + tile] = np.asarray(picture)
    return sheet

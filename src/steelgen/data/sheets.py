"""Sheets: many micrographs in one image, with mask overlays or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from steelgen.data.palette import blend_overlay
from steelgen.files import new_file

THUMBNAIL_EDGE = 320
"""Longest edge of a thumbnail in pixels."""
_CAPTION_HEIGHT = 16
_GAP = 6


def build_thumbnail(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: list[tuple[int, int, int]], edge: int = THUMBNAIL_EDGE
) -> NDArray[np.uint8]:
    """Shrinks an overlay of a mask on its image to (h, w, 3) uint8 RGB with edges of at most `edge` pixels."""
    overlay = Image.fromarray(blend_overlay(image, mask, palette))
    overlay.thumbnail((edge, edge), Image.Resampling.BOX)
    return np.asarray(overlay)


def build_contact_sheet(
    thumbnails: Sequence[tuple[str, NDArray[np.uint8]]],
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    columns: int = 4,
) -> Image.Image:
    """Arranges captioned thumbnails in rows below a legend.

    Args:
        thumbnails: (caption, (h, w, 3) uint8 RGB) each.
        legend: (class name, RGB) of each class with a color.
    """
    columns = max(1, min(columns, len(thumbnails)))
    cell_width = max((image.shape[1] for _, image in thumbnails), default=THUMBNAIL_EDGE) + _GAP
    cell_height = max((image.shape[0] for _, image in thumbnails), default=0) + _CAPTION_HEIGHT + _GAP
    rows = -(-len(thumbnails) // columns)
    top = _CAPTION_HEIGHT + 2 * _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, top + rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    x = _GAP
    for name, color in legend:
        draw.rectangle((x, _GAP, x + 12, _GAP + 12), fill=color, outline="black")
        draw.text((x + 18, _GAP), name, fill="black")
        x += 36 + int(draw.textlength(name))
    for number, (caption, image) in enumerate(thumbnails):
        left, upper = _GAP + number % columns * cell_width, top + number // columns * cell_height
        draw.text((left, upper), _shorten(draw, caption, cell_width - _GAP), fill="black")
        sheet.paste(Image.fromarray(image), (left, upper + _CAPTION_HEIGHT))
    return sheet


def save_contact_sheet(
    path: Path, thumbnails: Sequence[tuple[str, NDArray[np.uint8]]], legend: Sequence[tuple[str, tuple[int, int, int]]]
) -> None:
    """Writes a contact sheet as PNG; see `build_contact_sheet`."""
    with new_file(path) as working:
        build_contact_sheet(thumbnails, legend).save(working)


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shortens `text` to its end, which is where file names differ."""
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def build_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], tile: int, gap: int = 4) -> NDArray[np.uint8]:
    """Arranges images side by side on white.

    Args:
        rows: square images, (S, S) or (S, S, 3) uint8; the same number per row.
        tile: edge of each image on the sheet in px; enlarged by nearest neighbor, or shrunk by area average.
        gap: px between images.

    Returns:
        (H, W, 3) uint8.
    """
    step = tile + gap
    sheet = np.full((len(rows) * step - gap, len(rows[0]) * step - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            method = Image.Resampling.NEAREST if image.shape[0] < tile else Image.Resampling.BOX
            resized = Image.fromarray(image).convert("RGB").resize((tile, tile), method)
            sheet[i * step : i * step + tile, j * step : j * step + tile] = np.asarray(resized)
    return sheet

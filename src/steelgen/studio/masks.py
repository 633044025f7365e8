"""Masks on their way to the page and back: painted, loaded from a file, or laid out by a few numbers."""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import DatasetInfo, load_mask
from steelgen.data.images import load_image
from steelgen.data.palette import match_colors
from steelgen.data.placement import CropGeometry, resize_mask, scale_whole
from steelgen.errors import InputError
from steelgen.sampling.measured import IslandTable, Statistics
from steelgen.sampling.procedural import sample_layout

MAX_UPLOAD_PIXELS = 50_000_000
"""Larger files are refused by what their header says, before they are decoded."""
_COLOR_TOLERANCE = 35
"""How much each channel of a pixel may differ that counts as painted in the color of a class."""
_MIN_COLORED_SHARE = 0.9
_NUM_ISLANDS, _AREA_SPREAD, _SOLIDITY = 256, 0.5, 0.92
"""Islands that a layout chooses from; standard deviation of ln area; area over convex hull, as of real islands."""


def encode_mask(mask: NDArray[np.uint8]) -> str:
    """A mask (H, W) as the text that the page's canvas holds."""
    height, width = mask.shape
    return json.dumps({"width": width, "height": height, "indices": base64.b64encode(mask.tobytes()).decode()})


def decode_mask(text: str, info: DatasetInfo, size: int) -> NDArray[np.uint8]:
    """The mask that the page's canvas holds.

    Args:
        text: see `encode_mask`.
        info: the classes.
        size: edge that the mask must have, px.

    Returns:
        (size, size) uint8 class indices.

    Raises:
        InputError: if it is no mask of that size and these classes; what a browser sends may be anything.
    """
    try:
        values = json.loads(text)
        indices = np.frombuffer(base64.b64decode(values["indices"], validate=True), np.uint8)
        mask = indices.reshape(values["height"], values["width"])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise InputError("the painted mask cannot be read; load the page again") from None
    if mask.shape != (size, size):
        raise InputError(f"the painted mask is {mask.shape[1]}x{mask.shape[0]} px, the generator's are {size}x{size}")
    if mask.max() >= info.num_classes:
        raise InputError(f"the painted mask holds the index {mask.max()}, there are {info.num_classes} classes")
    return mask.copy()


def read_mask(path: Path, info: DatasetInfo, geometry: CropGeometry) -> tuple[NDArray[np.uint8], str]:
    """Reads a mask of any size from a file of class indices, or painted in the classes' colors.

    Masks of the network's own size are taken as they are; larger ones are brought to the scale of its images, of which
    the middle is taken. Ignored pixels become the first class.

    Returns:
        (image_size, image_size) uint8 class indices, and a sentence on what was taken.

    Raises:
        InputError: if the file is no image, too large, too small, or no mask of these classes; it is called by its
            name alone, since the folder is none of the user's.
    """
    try:
        _check_size(path)
        mask = _load_indices_or_colors(path, info)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    size, (height, width) = geometry.image_size, mask.shape
    if min(mask.shape) < size:
        raise InputError(f"{path.name}: the mask is {width}x{height} px, smaller than the generator's {size}x{size}")
    mask = np.where(mask < info.num_classes, mask, 0).astype(np.uint8)
    if mask.shape == (size, size):
        return mask, f"{path.name}, as it is"
    if min(mask.shape) < geometry.crop_size:
        factor = size / min(mask.shape)
        scaled = resize_mask(mask, *(max(size, round(edge * factor)) for edge in mask.shape))
    else:
        scaled = scale_whole(mask, geometry)
    top, left = ((edge - size) // 2 for edge in scaled.shape)
    part = "" if scaled.shape == (size, size) else "the middle of "
    note = f"{part}{path.name} ({width}x{height} px), brought to the scale of the generator's images"
    return np.ascontiguousarray(scaled[top : top + size, left : left + size]), note


def lay_out(
    mask: NDArray[np.uint8], label: int, share: float, diameter: float, aspect: float, seed: int
) -> NDArray[np.uint8]:
    """Lays islands of a class over a mask; see `sampling.procedural.sample_layout`, here with sizes by numbers.

    Args:
        mask: (S, S) class indices; what lies under the islands gives way, islands of the class that were there too.
        label: the class.
        share: of the area, to be met to the pixel, in [0, 0.6].
        diameter: of the circle with an island's mean area, px.
        aspect: length over width, ≥ 1.
        seed: of the layout.

    Returns:
        (S, S) uint8 class indices.
    """
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(-(_AREA_SPREAD**2) / 2, _AREA_SPREAD, _NUM_ISLANDS))
    area = np.maximum(np.pi / 4 * diameter**2 * spread, 1.0)
    same, infinite = np.ones(_NUM_ISLANDS), np.full(_NUM_ISLANDS, np.inf)
    angle = rng.uniform(0, np.pi, _NUM_ISLANDS)
    table = IslandTable(area, aspect * same, _SOLIDITY * same, angle, infinite, infinite, same)
    ground = 1 if label == 0 else 0
    statistics = Statistics(ground, [label], [{label: table}], [{}])
    layout = sample_layout(statistics, 0, {label: share}, len(mask), rng)
    cleared = np.where(mask == label, ground, mask)
    return np.where(layout == label, label, cleared).astype(np.uint8)


def _check_size(path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit warns before ours is asked
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise InputError(f"{path}: exceeds the page's limit of {MAX_UPLOAD_PIXELS:,} pixels") from None
    except Exception:
        raise InputError(f"{path}: is no image that can be read") from None
    if width * height > MAX_UPLOAD_PIXELS:
        raise InputError(f"{path}: {width}x{height} px exceed the page's limit of {MAX_UPLOAD_PIXELS:,} pixels")


def _load_indices_or_colors(path: Path, info: DatasetInfo) -> NDArray[np.uint8]:
    """(H, W) class indices or ignore_index."""
    image = load_image(path)
    if image.ndim == 2 or not info.palette:
        return load_mask(path, info)
    with Image.open(path) as opened:
        has_indices = opened.mode == "P"
    if has_indices:
        return load_mask(path, info)
    mask = match_colors(image, info.palette, tolerance=255).astype(np.uint8)
    share = float((match_colors(image, info.palette, _COLOR_TOLERANCE) >= 0).mean())
    if share < _MIN_COLORED_SHARE:
        raise InputError(f"{path}: only {share:.0%} of its pixels have the color of a class; a mask has all of them")
    return mask

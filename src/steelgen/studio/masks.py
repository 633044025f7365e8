"""Masks of the page: transfer to and from the canvas, uploaded files, and random islands."""

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
from steelgen.sampling.island_statistics import IslandTable, Statistics
from steelgen.sampling.procedural import sample_layout

MAX_UPLOAD_PIXELS = 50_000_000
"""Larger files are refused by their header, before decoding."""
_COLOR_TOLERANCE = 35
"""Maximum difference per channel between a pixel and the color of its class."""
_MIN_COLORED_SHARE = 0.9
_NUM_ISLANDS, _AREA_SPREAD, _SOLIDITY = 256, 0.5, 0.92
"""Islands to sample from, standard deviation of their ln(area), and solidity, as of real islands."""


def encode_mask(mask: NDArray[np.uint8]) -> str:
    """Encodes a mask (H, W) as the value of the canvas."""
    height, width = mask.shape
    return json.dumps({"width": width, "height": height, "indices": base64.b64encode(mask.tobytes()).decode()})


def decode_mask(text: str, info: DatasetInfo, size: int) -> NDArray[np.uint8]:
    """Decodes the value of the canvas as (size, size) uint8 class indices.

    Raises:
        InputError: if it is not a mask of that size and these classes; a browser can send anything.
    """
    try:
        values = json.loads(text)
        indices = np.frombuffer(base64.b64decode(values["indices"], validate=True), np.uint8)
        mask = indices.reshape(values["height"], values["width"])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise InputError("the painted mask cannot be read; reload the page") from None
    if mask.shape != (size, size):
        raise InputError(f"the painted mask is {mask.shape[1]}x{mask.shape[0]} px, must be {size}x{size} px")
    if mask.max() >= info.num_classes:
        raise InputError(f"the painted mask: class index {mask.max()} is not below num_classes {info.num_classes}")
    return mask.copy()


def read_mask(path: Path, info: DatasetInfo, geometry: CropGeometry) -> tuple[NDArray[np.uint8], str]:
    """Reads a mask from an uploaded file of class indices or class colors.

    Masks of the network's image size are not changed; larger ones are resized to the scale of its images and cropped to
    the center. Ignored pixels become class 0.

    Returns:
        (image_size, image_size) uint8 class indices, and a description of the mask.

    Raises:
        InputError: if the file is not an image, too large, too small, or not a mask of these classes; the message gives
            its name without the folder, which is temporary.
    """
    try:
        mask = _load_indices_or_colors(path, info)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    size, (height, width) = geometry.image_size, mask.shape
    if min(mask.shape) < size:
        raise InputError(f"{path.name}: the mask is {width}x{height} px, smaller than the generator's {size}x{size} px")
    mask = np.where(mask < info.num_classes, mask, 0).astype(np.uint8)
    if mask.shape == (size, size):
        return mask, path.name
    if min(mask.shape) < geometry.crop_size:
        factor = size / min(mask.shape)
        scaled = resize_mask(mask, *(max(size, round(edge * factor)) for edge in mask.shape))
    else:
        scaled = scale_whole(mask, geometry)
    top, left = ((edge - size) // 2 for edge in scaled.shape)
    note = f"{path.name} ({width}x{height} px), resized to the scale of the generator"
    if scaled.shape != (size, size):
        note += " and cropped to the center"
    return np.ascontiguousarray(scaled[top : top + size, left : left + size]), note


def place_random_islands(
    mask: NDArray[np.uint8], label: int, fraction: float, diameter: float, aspect: float, seed: int
) -> NDArray[np.uint8]:
    """Replaces the islands of a class by random ones; see `sampling.procedural.sample_layout`.

    Args:
        mask: (S, S) class indices; the new islands cover other classes.
        fraction: phase fraction, met to the pixel, in [0, 0.6].
        diameter: diameter of the circle with the mean island area, px.
        aspect: length / width, ≥ 1.

    Returns:
        (S, S) uint8 class indices.
    """
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(-(_AREA_SPREAD**2) / 2, _AREA_SPREAD, _NUM_ISLANDS))
    area = np.maximum(np.pi / 4 * diameter**2 * spread, 1.0)
    ones, infinite = np.ones(_NUM_ISLANDS), np.full(_NUM_ISLANDS, np.inf)
    angle = rng.uniform(0, np.pi, _NUM_ISLANDS)
    table = IslandTable(area, aspect * ones, _SOLIDITY * ones, angle, infinite, infinite, ones)
    matrix = 1 if label == 0 else 0
    layout = sample_layout(Statistics(matrix, [label], [{label: table}], [{}]), 0, {label: fraction}, len(mask), rng)
    cleared = np.where(mask == label, matrix, mask)
    return np.where(layout == label, label, cleared).astype(np.uint8)


def _load_indices_or_colors(path: Path, info: DatasetInfo) -> NDArray[np.uint8]:
    """Loads (H, W) class indices or ignore_index."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns at a lower limit
            with Image.open(path) as opened:
                (width, height), has_indices = opened.size, opened.mode == "P"
    except Image.DecompressionBombError:
        raise InputError(f"{path}: exceeds the limit of {MAX_UPLOAD_PIXELS:,} pixels") from None
    except Exception:
        raise InputError(f"{path}: not a readable image") from None
    if width * height > MAX_UPLOAD_PIXELS:
        raise InputError(f"{path}: {width}x{height} px exceeds the limit of {MAX_UPLOAD_PIXELS:,} pixels")
    image = load_image(path)
    if image.ndim == 2 or not info.palette or has_indices:
        return load_mask(path, info)
    share = float((match_colors(image, info.palette, _COLOR_TOLERANCE) >= 0).mean())
    if share < _MIN_COLORED_SHARE:
        raise InputError(f"{path}: only {share:.0%} of the pixels have a class color, not {_MIN_COLORED_SHARE:.0%}")
    return match_colors(image, info.palette, tolerance=255).astype(np.uint8)

"""Micrographs as microscopes write them: bit depths, TIFF pages, SEM tags and data bars."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import MAX_PIXELS, decoder_errors, load_image, merge_equal_channels
from steelgen.errors import InputError

MAX_BAR_SHARE = 0.3
"""Largest height of a data bar, as a share of the image height."""
_MICROMETERS = {"pm": 1e-6, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_MICROMETERS |= dict.fromkeys(("µm", "um", "micron", "microns"), 1.0)


@dataclass(frozen=True)
class ImageOptions:
    """Options for converting micrographs to 8-bit images."""

    deep_scaling: Literal["percentiles", "full"] = "percentiles"
    """Range that is scaled to 0-255 in images of more than 8 bit: between two percentiles, or that of the data type."""
    percentiles: tuple[float, float] = (0.1, 99.9)
    """Lower and upper percentile of each image."""
    page: int = 0
    """Page of a multi-page TIFF, 0-based."""
    data_bar: Literal["auto", "none"] | int = "auto"
    """Data bar with scale and settings at the bottom: detect and crop it, keep it, or the number of rows to crop."""
    pixel_size_um: float | None = None
    """Edge length of a pixel in µm; None means by the SEM tags of the file."""


@dataclass(frozen=True)
class Micrograph:
    """A converted micrograph."""

    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3), without the data bar."""
    full_height: int
    """Rows in the file, including the data bar."""
    pixel_size_um: float | None


def load_micrograph(path: Path, options: ImageOptions | None = None) -> Micrograph:
    """Reads a PNG, JPEG, BMP or TIFF micrograph; palette images and RGB with equal channels become one channel.

    Raises:
        InputError: if the file is not a readable image, the page does not exist, or the data bar is the whole image.
    """
    options = options or ImageOptions()
    pixel_size, scanned_rows = None, None
    if path.suffix.lower() in (".tif", ".tiff"):
        array, pixel_size, scanned_rows = _load_tiff(path, options.page)
    elif options.page:
        raise InputError(f"{path}: no page {options.page}; the file has one page")
    else:
        array = load_image(path, keep_depth=True)
    image = scale_to_8_bit(array, options, path)
    height = image.shape[0]
    if options.data_bar == "auto":
        bar = height - scanned_rows if scanned_rows and 0 < scanned_rows < height else find_data_bar(image)
    else:
        bar = 0 if options.data_bar == "none" else options.data_bar
    if not 0 <= bar < height:
        raise InputError(f"{path}: a data bar of {bar} rows leaves no image; the file has {height} rows")
    return Micrograph(np.ascontiguousarray(image[: height - bar]), height, options.pixel_size_um or pixel_size)


def scale_to_8_bit(array: NDArray[Any], options: ImageOptions, path: Path) -> NDArray[np.uint8]:
    """Scales an (H, W) or (H, W, 3) integer or floating-point image to uint8.

    Raises:
        InputError: names `path`; if a value is not finite, or `deep_scaling` is "full" for floating-point values.
    """
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise InputError(f"{path}: contains gray levels that are not finite")
    if options.deep_scaling == "percentiles":
        low, high = np.percentile(array, options.percentiles)
    elif array.dtype.kind == "f":
        raise InputError(f"{path}: floating-point gray levels have no full range; use percentiles")
    else:
        low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    scaled = (array.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def find_data_bar(image: NDArray[np.uint8]) -> int:
    """Detects the data bar at the bottom of a micrograph and returns its height in rows; 0 without a bar.

    A bar is at most 30 % of the height; its rows are mostly one uniform gray, which is rare right above the bar.
    """
    gray = image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8)
    height = gray.shape[0]
    lowest = gray[-max(height // 50, 4) :]
    plain = np.bincount(lowest.ravel(), minlength=256).argmax()
    share = (np.abs(gray.astype(np.int16) - plain) <= 2).mean(axis=1)
    # Text and a frame may fill a few rows of a bar, so 90 % of its rows must be uniform.
    plain_rows = np.cumsum(share[::-1] >= 0.4) / np.arange(1, height + 1)
    highest = int(MAX_BAR_SHARE * height)
    candidates = np.flatnonzero((plain_rows[:highest] >= 0.9) & (share[::-1][:highest] >= 0.4))
    if not len(candidates) or (bar := int(candidates[-1]) + 1) < max(height // 50, 8):
        return 0
    top = height - bar
    above = share[max(top - bar, 0) : top]
    # A bar has a straight upper edge; a dark rim of the specimen or its mounting does not.
    is_sharp = share[top : top + 4].max() >= 0.9 and share[max(top - 4, 0) : top].max() < 0.3
    return bar if is_sharp and np.percentile(above, 90) < 0.3 else 0


def _load_tiff(path: Path, page: int) -> tuple[NDArray[Any], float | None, int | None]:
    """Reads the pixels and, from the tags, the pixel size in µm and the scanned rows (without data bar)."""
    import tifffile

    with decoder_errors(path, "TIFF"), tifffile.TiffFile(path) as file:
        if not 0 <= page < len(file.pages):
            raise InputError(f"{path}: no page {page}; the file has {len(file.pages)} pages, counted from 0")
        wanted = file.pages[page]
        width, height = wanted.imagewidth, wanted.imagelength
        if math.prod(wanted.shape) > 4 * MAX_PIXELS or width * height > MAX_PIXELS:
            raise InputError(f"{path}: {width}x{height} pixels exceed the limit of {MAX_PIXELS:,}")
        pixel_size, rows = _read_sem_tags(file)
        if page == 0 and wanted.dtype == np.uint8:
            return load_image(path), pixel_size, rows
        array = wanted.asarray()
    if array.ndim == 3 and array.shape[0] in (3, 4) and array.shape[2] > 4:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3:
        array = merge_equal_channels(array[..., :3])
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.dtype.kind not in "uif":
        raise InputError(f"{path}: page {page} is not a gray or RGB image (shape {array.shape}, {array.dtype})")
    return array, pixel_size, rows


def _read_sem_tags(file: Any) -> tuple[float | None, int | None]:
    """Reads pixel size in µm and scanned rows from the tags of FEI or Zeiss, or the scale of OME or ImageJ."""
    fei, zeiss = file.fei_metadata or {}, file.sem_metadata or {}
    for section in ("Scan", "EScan"):
        width = fei.get(section, {}).get("PixelWidth")
        if isinstance(width, int | float) and 0 < width < 1:
            rows = fei.get("Image", {}).get("ResolutionY")
            return width * 1e6, rows if isinstance(rows, int) else None
    for key in ("ap_image_pixel_size", "ap_pixel_size"):
        value = zeiss.get(key, ())
        if len(value) == 3 and isinstance(value[1], int | float) and (size := _to_micrometers(value[1], value[2])):
            return size, None
    return _read_scale(file), None


def _read_scale(file: Any) -> float | None:
    """Reads the pixel size in µm from the metadata of OME or ImageJ."""
    if file.ome_metadata:
        described = re.search(r"<Pixels\b[^>]*>", file.ome_metadata)
        attributes = dict(re.findall(r"(\w+)=[\"']([^\"']*)[\"']", described[0])) if described else {}
        return _to_micrometers(attributes.get("PhysicalSizeX"), attributes.get("PhysicalSizeXUnit", "µm"))
    if file.imagej_metadata:
        pixels, length = file.pages[0].tags["XResolution"].value if "XResolution" in file.pages[0].tags else (0, 1)
        return _to_micrometers(length / pixels if pixels else None, str(file.imagej_metadata.get("unit", "")))
    return None


def _to_micrometers(length: Any, unit: str) -> float | None:
    scale = _MICROMETERS.get(unit.replace("\\u00B5", "µ").replace("μ", "µ"))
    try:
        size = float(length) * scale if scale else 0.0
    except (TypeError, ValueError):
        return None
    return size if 0 < size < 1e6 else None

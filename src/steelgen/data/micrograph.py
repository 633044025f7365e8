"""Micrographs as microscopes write them: 8 or 16 bit, several pages, SEM tags, a data bar at the bottom."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import MAX_PIXELS, load_image
from steelgen.errors import InputError, first_line

MAX_BAR_SHARE = 0.3
"""Of the height of an image; data bars are lower."""
DeepScaling = Literal["percentiles", "full"]


_MICROMETERS = {
    "pm": 1e-6,
    "nm": 1e-3,
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}


@dataclass(frozen=True)
class ImageOptions:
    """How micrographs become 8-bit images."""

    deep_scaling: DeepScaling = "percentiles"
    """Images of more than 8 bit: the range between two percentiles, or that of the number type, becomes 0-255."""
    percentiles: tuple[float, float] = (0.1, 99.9)
    """The two percentiles, of each image."""
    page: int = 0
    """Page of a multi-page TIFF, counted from 0."""
    data_bar: Literal["auto", "none"] | int = "auto"
    """The bar with scale and settings below the micrograph: found and cropped, left, or cropped by this many rows."""
    pixel_size_um: float | None = None
    """Edge length of a pixel in µm; where None, what the file's SEM tags say."""


@dataclass(frozen=True)
class Micrograph:
    """A micrograph ready for a dataset folder."""

    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3), without its data bar."""
    full_height: int
    """Rows in the file, data bar included."""
    pixel_size_um: float | None

    @property
    def data_bar_height(self) -> int:
        """Rows that were cropped at the bottom."""
        return self.full_height - self.image.shape[0]


def load_micrograph(path: Path, options: ImageOptions | None = None) -> Micrograph:
    """Reads a micrograph, PNG, JPEG, BMP or TIFF; palette images and RGB with equal channels become one channel.

    Raises:
        InputError: if the file is no readable image, has no such page, or the data bar would leave nothing.
    """
    options = options or ImageOptions()
    pixel_size, scanned_rows = None, None
    if path.suffix.lower() in (".tif", ".tiff"):
        array, pixel_size, scanned_rows = _load_tiff(path, options.page)
    elif options.page:
        raise InputError(f"{path}: has one page, not a page {options.page}")
    else:
        array = load_image(path, keep_depth=True)
    image = scale_to_8_bit(array, options, path)
    height = image.shape[0]
    if options.data_bar == "auto":
        bar = height - scanned_rows if scanned_rows and 0 < scanned_rows < height else find_data_bar(image)
    else:
        bar = 0 if options.data_bar == "none" else options.data_bar
    if not 0 <= bar < height:
        raise InputError(f"{path}: a data bar of {bar} rows leaves nothing of {height}")
    return Micrograph(np.ascontiguousarray(image[: height - bar]), height, options.pixel_size_um or pixel_size)


def scale_to_8_bit(array: NDArray[Any], options: ImageOptions, path: Path) -> NDArray[np.uint8]:
    """Scales gray levels of any depth to 0-255.

    Args:
        array: (H, W) or (H, W, 3), whole or floating-point numbers.
        path: named in errors.

    Raises:
        InputError: if a level is not finite, or floating-point levels are to be scaled by their "full" range.
    """
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds gray levels that are not finite numbers")
    if options.deep_scaling == "percentiles":
        low, high = np.percentile(array, options.percentiles)
    elif array.dtype.kind == "f":
        raise InputError(f"{path}: floating-point gray levels have no full range; scale them by percentiles")
    else:
        low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    scaled = (array.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def find_data_bar(image: NDArray[np.uint8]) -> int:
    """The height in rows of the data bar at the bottom of a micrograph; 0 where there is none.

    A bar is up to 30 % of the height, and most of each of its rows is one plain gray, which is rare right above it.
    """
    gray = image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8)
    height = gray.shape[0]
    lowest = gray[-max(height // 50, 4) :]
    plain = np.bincount(lowest.ravel(), minlength=256).argmax()
    share = (np.abs(gray.astype(np.int16) - plain) <= 2).mean(axis=1)
    # Lines of text and a frame may fill a few rows of a bar, so nine in ten rows need to be plain.
    plain_rows = np.cumsum(share[::-1] >= 0.4) / np.arange(1, height + 1)
    highest = int(MAX_BAR_SHARE * height)
    candidates = np.flatnonzero((plain_rows[:highest] >= 0.9) & (share[::-1][:highest] >= 0.4))
    if not len(candidates) or (bar := int(candidates[-1]) + 1) < max(height // 50, 8):
        return 0
    top = height - bar
    above = share[max(top - bar, 0) : top]
    # A bar begins with a straight edge; a dark rim of the specimen or its mounting rises and falls.
    is_sharp = share[top : top + 4].max() >= 0.9 and share[max(top - 4, 0) : top].max() < 0.3
    return bar if is_sharp and np.percentile(above, 90) < 0.3 else 0


def _load_tiff(path: Path, page: int) -> tuple[NDArray[Any], float | None, int | None]:
    """Pixels, pixel size in µm and the scanned rows (without data bar) where the tags tell."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if not 0 <= page < len(file.pages):
                raise InputError(f"{path}: has {len(file.pages)} pages, counted from 0, not a page {page}")
            wanted = file.pages[page]
            if math.prod(wanted.shape) > 4 * MAX_PIXELS or wanted.imagewidth * wanted.imagelength > MAX_PIXELS:
                raise InputError(
                    f"{path}: {wanted.imagewidth}x{wanted.imagelength} pixels exceed the limit of {MAX_PIXELS:,}"
                )
            pixel_size, rows = _read_sem_tags(file)
            if page == 0 and wanted.dtype == np.uint8:
                return load_image(path), pixel_size, rows
            array = wanted.asarray()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # tifffile raises nearly anything on damaged files
        raise InputError(f"{path}: not a readable TIFF: {first_line(error)}") from None
    if array.ndim == 3 and array.shape[0] in (3, 4) and array.shape[2] > 4:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3:
        array = array[..., :3]
        if (array[..., :1] == array).all():
            array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.dtype.kind not in "uif":
        raise InputError(f"{path}: page {page} is no gray or RGB image (shape {array.shape}, {array.dtype})")
    return array, pixel_size, rows


def _read_sem_tags(file: Any) -> tuple[float | None, int | None]:
    """FEI's and Zeiss' own tags; lengths in them are in m and in the named unit. Else the scale of OME and ImageJ."""
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
    """The pixel size in µm of an OME-TIFF, or of one that ImageJ wrote."""
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

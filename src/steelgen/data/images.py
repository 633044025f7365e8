"""Reading single image files, strictly, and writing them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.errors import InputError, first_line
from steelgen.files import new_file

MAX_PIXELS = 400_000_000
"""Larger images are refused before decoding: a few bytes can claim any size."""


def load_image(path: Path, keep_depth: bool = False, as_indices: bool = False) -> NDArray[Any]:
    """Reads a micrograph.

    Palette images and RGB images with equal channels become one channel; 16-bit images are scaled by their full range.

    Args:
        keep_depth: leave 16-bit images as they are.
        as_indices: read the indices of palette images instead of their colors.

    Returns:
        (H, W) uint8 for gray images, (H, W, 3) uint8 RGB for color images; uint16 where the depth is kept.

    Raises:
        InputError: if the file is missing, truncated, too large or no image.
    """
    array = _decode(path, as_indices)
    if array.dtype == np.uint16:
        return array if keep_depth else (array >> 8).astype(np.uint8)
    if array.ndim == 3 and (array[..., :1] == array).all():
        return np.ascontiguousarray(array[..., 0])
    return array


def load_index_image(path: Path) -> NDArray[np.uint8]:
    """Reads class indices: the indices of a palette image, or the gray levels of a single-channel one.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: if the file is missing, truncated, too large, no image, or has color channels that differ.
    """
    array = load_whole_numbers(path)
    if array.size and not 0 <= array.min() <= array.max() <= 255:
        value = array.max() if array.max() > 255 else array.min()
        raise InputError(f"{path}: mask index {value} does not fit 8 bits")
    return array.astype(np.uint8)


def load_whole_numbers(path: Path) -> NDArray[np.integer[Any]]:
    """Reads an image of labels: palette indices, or gray levels of any depth; of a TIFF the first page.

    Returns:
        (H, W), of the type in the file.

    Raises:
        InputError: if the file is missing, truncated, too large, no image, or has channels that differ.
    """
    array = _load_deep_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else None
    if array is None:
        array = _decode(path, as_indices=True)
    if array.ndim == 3 and (array[..., :1] == array).all():
        return np.ascontiguousarray(array[..., 0])
    if array.ndim == 3:
        raise InputError(f"{path}: a mask must have one channel of class indices, not RGB colors")
    return array


def load_rgba(path: Path) -> NDArray[np.uint8]:
    """Reads the colors of an image as (H, W, 4) uint8 RGBA.

    Raises:
        InputError: see `load_image`.
    """
    return _decode(path, mode="RGBA")


def is_colored(path: Path) -> bool:
    """Whether an image has color channels that differ, or an opacity.

    Raises:
        InputError: see `load_image`.
    """
    try:
        load_whole_numbers(path)
    except InputError as error:
        try:
            rgba = load_rgba(path)
        except InputError:
            raise error from None
        return bool((rgba[..., :1] != rgba[..., :3]).any() or (rgba[..., 3] < 255).any())
    return False


def load_image_size(path: Path) -> tuple[int, int]:
    """The (height, width) that an image's header states; the pixels are not read.

    Raises:
        InputError: if the file is missing or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.height, image.width
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from None


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 image, whole or not at all; the path's ending says in which format."""
    with new_file(path) as working:
        Image.fromarray(image).save(working)


def save_micrograph(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an (H, W) or (H, W, 3) image as PNG into a folder that is made where it is missing.

    Not all at once: for folders that themselves appear when they are whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Gray levels of micrographs are mostly noise: stronger compression takes five times as long for 3 %.
    Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=2)


def _load_deep_tiff(path: Path) -> NDArray[np.integer[Any]] | None:
    """The first page of a TIFF of whole numbers that Pillow does not read, such as napari's 32 and 64 bit labels."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            if page.dtype is None or page.dtype.kind not in "iu" or page.dtype in (np.uint8, np.uint16):
                return None
            if math.prod(page.shape) > MAX_PIXELS:
                raise InputError(f"{path}: {page.shape} pixels exceed the limit of {MAX_PIXELS:,}")
            array = page.asarray().squeeze()
    except InputError:
        raise
    except Exception:  # Pillow says what is wrong with it
        return None
    if array.ndim != 2:
        raise InputError(f"{path}: labels of shape {array.shape} are no 2D image")
    return array


def _decode(path: Path, as_indices: bool = False, mode: str | None = None) -> NDArray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes, which are checked here, and of tags that nobody reads.
            warnings.simplefilter("ignore")
            _verify_checksums(path)
            with Image.open(path) as opened:
                image: Image.Image = opened
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise InputError(f"{path}: {width}x{height} pixels exceed the limit of {MAX_PIXELS:,}")
                if mode is not None:
                    return np.asarray(image.convert(mode))
                if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                    return _to_uint16(np.asarray(image), path)
                if image.mode == "1" and as_indices:
                    return np.asarray(image).astype(np.uint8)
                if image.mode == "1" or (image.mode == "P" and not as_indices) or image.mode == "LA":
                    image = image.convert("RGB" if image.mode == "P" else "L")
                elif image.mode == "F":
                    raise InputError(f"{path}: floating-point gray levels have no known range")
                elif image.mode not in ("L", "P", "RGB"):
                    image = image.convert("RGB")
                return np.asarray(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from None


def _verify_checksums(path: Path) -> None:
    """Raises where a PNG's checksums are wrong: Pillow's decoder shows some damaged pixels without a word."""
    with Image.open(path) as image:
        if image.format == "PNG":
            image.verify()


def _to_uint16(array: NDArray, path: Path) -> NDArray[np.uint16]:
    if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise InputError(f"{path}: gray levels outside 0..65535")
    return array.astype(np.uint16)


def to_channels(image: NDArray[np.uint8], in_channels: int) -> NDArray[np.uint8]:
    """Makes a (H, W) or (H, W, 3) uint8 image have 1 (H, W) or 3 (H, W, 3) channels; gray is ITU-R 601 luma."""
    if in_channels == 1:
        return np.asarray(Image.fromarray(image).convert("L")) if image.ndim == 3 else image
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image

"""Strict reading and writing of single image files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.errors import InputError, first_line
from steelgen.files import new_file

MAX_PIXELS = 400_000_000
"""Larger images are rejected before decoding: a file of a few bytes can claim any size."""


def load_image(path: Path, keep_depth: bool = False) -> NDArray[Any]:
    """Reads a micrograph.

    Palette images and RGB images with equal channels become one channel; 16-bit images are scaled by their full range.

    Args:
        keep_depth: do not scale 16-bit images.

    Returns:
        (H, W) uint8 for gray images, (H, W, 3) uint8 RGB for color images; uint16 with `keep_depth`.

    Raises:
        InputError: if the file is missing, truncated, too large or not an image.
    """
    array = _decode(path)
    if array.dtype == np.uint16:
        return array if keep_depth else (array >> 8).astype(np.uint8)
    return merge_equal_channels(array)


def load_index_image(path: Path) -> NDArray[np.uint8]:
    """Reads class indices, 0-255, as (H, W) uint8; see `load_integers`."""
    return load_integers(path, 255).astype(np.uint8)


def find_mask_values(paths: Iterable[Path]) -> NDArray[np.intp]:
    """Reads masks by `load_index_image` and returns the values (0-255) that occur in any of them, sorted."""
    occurs = np.zeros(256, bool)
    for path in paths:
        occurs[np.unique(load_index_image(path))] = True
    return np.flatnonzero(occurs)


def load_integers(path: Path, highest: int | None = None) -> NDArray[np.integer[Any]]:
    """Reads a label image: palette indices, or gray levels of any depth; the first page of a TIFF.

    Args:
        highest: largest value allowed, with 0 as the smallest.

    Returns:
        (H, W), with the dtype of the file.

    Raises:
        InputError: if the file is missing, truncated, too large or not an image, its channels differ, or a value is out
            of range.
    """
    array = _load_deep_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else None
    array = merge_equal_channels(_decode(path, as_indices=True) if array is None else array)
    if array.ndim == 3:
        raise InputError(f"{path}: a mask needs one channel of class indices, not RGB colors")
    if highest is not None and array.size and not 0 <= array.min() <= array.max() <= highest:
        value = array.max() if array.max() > highest else array.min()
        raise InputError(f"{path}: value {value} is not from 0 to {highest}")
    return array


def load_rgba(path: Path) -> NDArray[np.uint8]:
    """Reads an image as (H, W, 4) uint8 RGBA; raises errors as `load_image`."""
    return _decode(path, mode="RGBA")


def is_colored(path: Path) -> bool:
    """Whether an image has color channels that differ, or transparent pixels; raises errors as `load_image`."""
    try:
        load_integers(path)
    except InputError as error:
        try:
            rgba = load_rgba(path)
        except InputError:
            raise error from None
        return bool((rgba[..., :1] != rgba[..., :3]).any() or (rgba[..., 3] < 255).any())
    return False


def load_image_size(path: Path) -> tuple[int, int]:
    """Reads (height, width) from an image's header, without decoding the pixels.

    Raises:
        InputError: if the file is missing or not an image.
    """
    with decoder_errors(path), Image.open(path) as image:
        return image.height, image.width


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 image atomically, in the format of the path's suffix."""
    with new_file(path) as working:
        Image.fromarray(image).save(working)


def save_micrograph(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an (H, W) or (H, W, 3) image as PNG, creating its folder; not atomic, for use within `new_folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Gray levels of micrographs are mostly noise: stronger compression takes five times as long and saves 3 %.
    Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=2)


def to_channels(image: NDArray[np.uint8], in_channels: int) -> NDArray[np.uint8]:
    """Converts an (H, W) or (H, W, 3) uint8 image to 1 channel (H, W), by ITU-R 601 luma, or to 3 (H, W, 3)."""
    if in_channels == 1:
        return np.asarray(Image.fromarray(image).convert("L")) if image.ndim == 3 else image
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def merge_equal_channels(array: NDArray[Any]) -> NDArray[Any]:
    """Reduces (H, W, C) with equal channels to (H, W); returns any other image unchanged."""
    if array.ndim == 3 and (array[..., :1] == array).all():
        return np.ascontiguousarray(array[..., 0])
    return array


@contextmanager
def decoder_errors(where: object, kind: str = "image") -> Iterator[None]:
    """Converts the exceptions of a decoder, which may be of any type on damaged files, to `InputError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes, which are checked here, and about tags that are not used.
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except Exception as error:
        raise InputError(f"{where}: not a readable {kind}: {first_line(error)}") from None


def _load_deep_tiff(path: Path) -> NDArray[np.integer[Any]] | None:
    """Reads the first page of an integer TIFF that Pillow does not support, such as napari's 32 and 64 bit labels."""
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
    except Exception:  # Pillow reports what is wrong with the file
        return None
    if array.ndim != 2:
        raise InputError(f"{path}: labels of shape {array.shape} are not a 2D image")
    return array


def _decode(path: Path, as_indices: bool = False, mode: str | None = None) -> NDArray:
    with decoder_errors(path):
        _verify_checksums(path)
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"{path}: {width}x{height} pixels exceed the limit of {MAX_PIXELS:,}")
            if mode is None and image.mode in ("I;16", "I;16B", "I;16L", "I"):
                return _to_uint16(np.asarray(image), path)
            if mode is None and image.mode == "1" and as_indices:
                return np.asarray(image).astype(np.uint8)
            if mode is None and image.mode == "F":
                raise InputError(f"{path}: floating-point gray levels have no known range")
            modes = {"L": "L", "LA": "L", "1": "L", "P": "P" if as_indices else "RGB"}
            return np.asarray(image.convert(mode or modes.get(image.mode, "RGB")))


def _verify_checksums(path: Path) -> None:
    """Raises if a PNG's checksums are wrong: Pillow's decoder accepts some damaged pixels."""
    with Image.open(path) as image:
        if image.format == "PNG":
            image.verify()


def _to_uint16(array: NDArray, path: Path) -> NDArray[np.uint16]:
    if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise InputError(f"{path}: gray levels outside 0..65535")
    return array.astype(np.uint16)

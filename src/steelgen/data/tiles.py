"""Cutting the micrographs of a dataset folder into tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import (
    DatasetInfo,
    list_pairs,
    list_splits,
    load_dataset_info,
    load_instances,
    load_metadata,
    load_pair,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.images import save_micrograph
from steelgen.data.instances import save_instances
from steelgen.data.islands import label_islands
from steelgen.data.placement import resize_image, resize_mask
from steelgen.data.splits import parent_of
from steelgen.errors import InputError
from steelgen.files import new_folder


@dataclass(frozen=True)
class TileOptions:
    """Selection of the tiles."""

    size: int
    """Edge of a tile in pixels, after scaling."""
    stride: int | None = None
    """Grid spacing in pixels; None means `size`."""
    placement: Literal["grid", "centered"] = "grid"
    """`grid` covers the micrograph, `centered` cuts one tile around each island."""
    min_foreground: float = 0.0
    """Smallest share of pixels with a class other than 0; 0 keeps all tiles."""
    whole: bool = False
    """Only keep tiles with at least one island, and no island that the tile's border cuts."""
    scale: float = 1.0
    """Factor for resizing the micrographs first; pixel sizes are adjusted."""


def tile_dataset(
    root: Path, out: Path, options: TileOptions, report: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Cuts each micrograph of a dataset folder into tiles of the same split, named NAME_x0_y0_x1_y1.

    Returns:
        {split: number of tiles}.

    Raises:
        InputError: if an option is out of range, a micrograph is smaller than a tile, a split would be empty, or `out`
            is in use.
    """
    if options.size < 1 or (options.stride is not None and options.stride < 1) or not 0 < options.scale <= 16:
        raise InputError("tiles: size and stride must be at least 1, scale above 0 and at most 16")
    if options.stride is not None and options.placement == "centered":
        raise InputError(f"tiles: stride {options.stride} does not apply to tiles centered on islands")
    if not 0 <= options.min_foreground <= 1:
        raise InputError(f"tiles: min_foreground {options.min_foreground} must be from 0 to 1")
    info, metadata = load_dataset_info(root), load_metadata(root)
    pairs = [(split, pair) for split in list_splits(root) for pair in list_pairs(root, split)]
    counts = dict.fromkeys((split for split, _ in pairs), 0)
    rows = []
    with new_folder(out) as working:
        for number, (split, pair) in enumerate(pairs):
            image, mask = load_pair(pair, info)
            instances = load_instances(pair, mask.shape)
            image, mask, instances = _rescale(image, mask, instances, options.scale)
            if min(mask.shape) < options.size:
                raise InputError(
                    f"{pair.image}: is {mask.shape[1]}x{mask.shape[0]}, smaller than a tile of {options.size}"
                )
            name = f"{split}/images/{pair.image.name}"
            row = {"parent": parent_of(pair.stem), **metadata.get(name, {}), "file_name": name}
            if size := row.get("pixel_size_um", info.pixel_size_um):
                row["pixel_size_um"] = size / options.scale
            for top, left in find_tiles(mask, info, options):
                window = (slice(top, top + options.size), slice(left, left + options.size))
                name = f"{pair.stem}_{left}_{top}_{left + options.size}_{top + options.size}.png"
                save_micrograph(working / split / "images" / name, image[window])
                if pair.mask:
                    save_mask(working / split / "masks" / name, np.ascontiguousarray(mask[window]), info.palette)
                if instances is not None:
                    save_instances(working / split / "instances" / name, np.ascontiguousarray(instances[window]))
                rows.append({**row, "file_name": f"{split}/images/{name}"})
                counts[split] += 1
            if report:
                report(number + 1, len(pairs))
        for split, count in counts.items():
            if not count:
                raise InputError(f"{root / split}: no tile meets the conditions; split {split!r} would be empty")
        save_metadata(working, rows)
        pixel_size = info.pixel_size_um and info.pixel_size_um / options.scale
        save_dataset_info(working, info.model_copy(update={"pixel_size_um": pixel_size}))
    return counts


def find_tiles(mask: NDArray[np.uint8], info: DatasetInfo, options: TileOptions) -> list[tuple[int, int]]:
    """Returns the top left corners (row, column) of the tiles of an (H, W) mask that meet the conditions."""
    foreground = (mask > 0) & (mask != info.ignore_index)
    labels, _ = label_islands(foreground)
    positions = _centered(labels, options.size) if options.placement == "centered" else _grid(mask.shape, options)
    sizes = np.bincount(labels.ravel())
    kept = []
    for top, left in dict.fromkeys(positions):
        window = (slice(top, top + options.size), slice(left, left + options.size))
        if foreground[window].mean() < options.min_foreground:
            continue
        if options.whole:
            inside = np.bincount(labels[window].ravel(), minlength=len(sizes))[1:]
            if not inside.any() or ((inside > 0) & (inside < sizes[1:])).any():
                continue
        kept.append((top, left))
    return kept


def _grid(shape: tuple[int, ...], options: TileOptions) -> Iterator[tuple[int, int]]:
    stride = options.stride or options.size
    # The last row and column end at the border, so the tiles cover the whole micrograph.
    rows, columns = ([*range(0, edge - options.size, stride), edge - options.size] for edge in shape)
    return ((top, left) for top in rows for left in columns)


def _centered(labels: NDArray[np.int32], size: int) -> Iterator[tuple[int, int]]:
    from scipy import ndimage

    for rows, columns in ndimage.find_objects(labels):
        top = (rows.start + rows.stop - size) // 2
        left = (columns.start + columns.stop - size) // 2
        yield min(max(top, 0), labels.shape[0] - size), min(max(left, 0), labels.shape[1] - size)


def _rescale(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], instances: NDArray[np.uint16] | None, scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16] | None]:
    height, width = (max(1, round(edge * scale)) for edge in mask.shape)
    if (height, width) == mask.shape:
        return image, mask, instances
    if instances is not None:
        resized = Image.fromarray(instances).resize((width, height), Image.Resampling.NEAREST)
        instances = np.asarray(resized).astype(np.uint16)
    return resize_image(image, height, width), resize_mask(mask, height, width), instances

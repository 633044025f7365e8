"""A dataset folder of micrographs → a dataset folder of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import (
    DatasetInfo,
    list_pairs,
    list_splits,
    load_dataset_info,
    load_metadata,
    load_pair,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.images import save_micrograph
from steelgen.data.importers.sources import parent_of
from steelgen.data.instances import load_instance_ids, save_instances
from steelgen.data.islands import label_islands
from steelgen.errors import InputError
from steelgen.files import new_folder

TilePlacement = Literal["grid", "centered"]


@dataclass(frozen=True)
class TileOptions:
    """Which tiles are cut."""

    size: int
    """Edge of a tile in pixels, after scaling."""
    stride: int | None = None
    """Pixels from one tile of the grid to the next; None is `size`."""
    placement: TilePlacement = "grid"
    """`grid` covers the micrograph, `centered` cuts one tile around each island."""
    min_foreground: float = 0.0
    """Least share of pixels of classes other than 0."""
    whole: bool = False
    """Only tiles with at least one island and none that the tile's edge cuts."""
    scale: float = 1.0
    """Micrographs are resized by this factor first; the pixel size with them."""


def tile_dataset(
    root: Path, out: Path, options: TileOptions, report: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Cuts every micrograph of a dataset folder into tiles of the same split, named NAME_x0_y0_x1_y1.

    Returns:
        {split: number of tiles}.

    Raises:
        InputError: if an option is out of limits, a micrograph is smaller than a tile, a split would get no tile, or
            `out` is in use.
    """
    if options.size < 1 or (options.stride is not None and options.stride < 1) or not 0 < options.scale <= 16:
        raise InputError("tiles: size and stride must be at least 1, scale above 0 and at most 16")
    if options.stride is not None and options.placement == "centered":
        raise InputError(f"tiles: a stride of {options.stride} means nothing for tiles centered on islands")
    if not 0 <= options.min_foreground <= 1:
        raise InputError(f"tiles: min_foreground {options.min_foreground} must be from 0 to 1")
    info, metadata = load_dataset_info(root), load_metadata(root)
    pairs = [(split, pair) for split in list_splits(root) for pair in list_pairs(root, split)]
    counts = dict.fromkeys((split for split, _ in pairs), 0)
    rows = []
    with new_folder(out) as working:
        for number, (split, pair) in enumerate(pairs):
            image, mask = load_pair(pair, info)
            instances_path = root / split / "instances" / f"{pair.stem}.png"
            instances = load_instance_ids(instances_path) if instances_path.is_file() else None
            if instances is not None and instances.shape != mask.shape:
                raise InputError(f"{instances_path}: is not of its mask's size")
            image, mask, instances = _rescale(image, mask, instances, options.scale)
            if min(mask.shape) < options.size:
                raise InputError(
                    f"{pair.image}: is {mask.shape[1]}x{mask.shape[0]}, smaller than a tile of {options.size}"
                )
            known = metadata.get(f"{split}/images/{pair.image.name}", {})
            for top, left in find_tiles(mask, info, options):
                window = (slice(top, top + options.size), slice(left, left + options.size))
                stem = f"{pair.stem}_{left}_{top}_{left + options.size}_{top + options.size}"
                part = None if instances is None else instances[window]
                _save_tile(working / split, stem, image[window], mask[window] if pair.mask else None, part, info)
                rows.append(_describe(known, split, stem, parent_of(pair.stem), info, options.scale))
                counts[split] += 1
            if report:
                report(number + 1, len(pairs))
        for split, count in counts.items():
            if not count:
                raise InputError(f"{root / split}: no tile meets the conditions; the split {split!r} would be empty")
        save_metadata(working, rows)
        size = info.pixel_size_um and info.pixel_size_um / options.scale
        save_dataset_info(working, info.model_copy(update={"pixel_size_um": size}))
    return counts


def find_tiles(mask: NDArray[np.uint8], info: DatasetInfo, options: TileOptions) -> list[tuple[int, int]]:
    """The top left corners (row, column) of the tiles of one (H, W) mask that meet the conditions."""
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
    # The last row and column end at the border, so that nothing is left out.
    rows, columns = ([*range(0, edge - options.size, stride), edge - options.size] for edge in shape)
    for top in rows:
        for left in columns:
            yield top, left


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
    from steelgen.data.placement import resize_image, resize_mask

    if instances is not None:
        resized = Image.fromarray(instances).resize((width, height), Image.Resampling.NEAREST)
        instances = np.asarray(resized).astype(np.uint16)
    return resize_image(image, height, width), resize_mask(mask, height, width), instances


def _save_tile(
    folder: Path,
    stem: str,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    instances: NDArray[np.uint16] | None,
    info: DatasetInfo,
) -> None:
    save_micrograph(folder / "images" / f"{stem}.png", image)
    if mask is not None:
        save_mask(folder / "masks" / f"{stem}.png", np.ascontiguousarray(mask), info.palette)
    if instances is not None:
        save_instances(folder / "instances" / f"{stem}.png", np.ascontiguousarray(instances))


def _describe(
    known: dict[str, Any], split: str, stem: str, parent: str, info: DatasetInfo, scale: float
) -> dict[str, Any]:
    row = {"parent": parent, **known, "file_name": f"{split}/images/{stem}.png"}
    if size := row.get("pixel_size_um", info.pixel_size_um):
        row["pixel_size_um"] = size / scale
    return row

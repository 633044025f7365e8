"""Masks that a source has as files: of class indices, of colors with a legend, of the ids of objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import IndexMask, Legend
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import load_index_image, load_rgba, to_channels
from steelgen.data.instances import load_instance_ids
from steelgen.data.micrograph import Micrograph
from steelgen.data.palette import match_colors
from steelgen.errors import InputError


def load_mask_file(source: IndexMask, micrograph: Micrograph, info: DatasetInfo) -> NDArray[np.uint8]:
    """Reads the mask of a micrograph as class indices, (H, W) of the file's own size.

    Raises:
        InputError: if the file is unreadable, or holds a value or a color that is no class.
    """
    if source.holds_objects:
        assert source.instances is not None
        return (load_instance_ids(source.instances) > 0).astype(np.uint8)
    if source.legend:
        return _read_colors(source, source.legend, micrograph, info)
    return _look_up(load_index_image(source.path), source.lookup, source.path, info)


def _read_colors(source: IndexMask, legend: Legend, micrograph: Micrograph, info: DatasetInfo) -> NDArray[np.uint8]:
    rgba = load_rgba(source.path)
    matched = match_colors(rgba[..., :3], legend.colors, legend.tolerance)
    mask = np.array([*legend.class_indices, legend.unlabeled], np.uint8)[matched]
    unknown = matched < 0
    # A data bar, which is copied with the image, is cropped later on.
    rows = min(micrograph.image.shape[0], len(rgba))
    unknown[rows:] = False
    unknown &= rgba[..., 3] > 0
    if unknown.any() and micrograph.image.shape[1] == rgba.shape[1]:
        copied = np.abs(to_channels(micrograph.image[:rows], 3).astype(np.int16) - rgba[:rows, :, :3]).max(axis=2)
        unknown[:rows] &= copied > legend.tolerance
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        where = f"{source.path}: the color {','.join(map(str, rgba[row, column, :3]))} at ({column}, {row})"
        raise InputError(
            f"{where}, and {unknown.sum() - 1} pixels more, are neither in the legend nor as in the image "
            "(--colors, --color-tolerance)"
        )
    mask[rgba[..., 3] == 0] = legend.unlabeled
    return mask


def _look_up(mask: NDArray[np.uint8], lookup: NDArray[np.uint8], path: Path, info: DatasetInfo) -> NDArray[np.uint8]:
    mapped = lookup[mask]
    unknown = (mapped >= info.num_classes) & (mapped != info.ignore_index)
    if unknown.any():
        raise InputError(f"{path}: the value {mask[unknown][0]} is none of the {info.num_classes} classes")
    return mapped

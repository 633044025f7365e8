"""Masks to render: a folder of masks, a dataset folder, or a mask source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.config.base import Section, parse_config
from steelgen.config.learned import LearnedMasks
from steelgen.config.mask_sources import AnyMasks, FolderMasks, ImageMasks, NoMasks
from steelgen.data.folder import DatasetInfo, list_images, list_pairs, load_dataset_info, load_mask
from steelgen.data.images import find_mask_values
from steelgen.data.palette import name_classes
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.generators.families import load_generator
from steelgen.sampling.mask_sources import build_mask_source

DEFAULT_COUNT = 64
"""Number of layouts of a mask source."""


class _Layouts(Section):
    mask_source: AnyMasks
    """See `SampleConfig.mask_source`."""


@dataclass(frozen=True)
class LayoutSize:
    """Size of the layouts of a mask source."""

    image_size: int = 64
    """Edge in pixels."""
    crop_size: int | None = None
    """Edge of the crops of micrographs that layouts are modeled on; None means image_size."""


def load_layouts(
    path: Path, info: DatasetInfo | None, count: int | None, size: LayoutSize, seed: int
) -> tuple[DatasetInfo, int, Iterator[tuple[str, NDArray[np.uint8]]]]:
    """Opens layouts.

    Args:
        path: a folder of masks; a dataset folder (its training masks); or a config of `steelgen sample`, of which
            only `mask_source` is used.
        info: classes of the masks; None uses those of the dataset, or as many as a folder of masks shows.
        count: number of layouts; files are repeated. None means each file once, or DEFAULT_COUNT of a mask source.

    Returns:
        The classes, the number of layouts, and (name, (H, W) mask) of each.

    Raises:
        InputError: if there are no masks, or they have other classes.
    """
    if path.is_dir():
        if (path / "dataset.json").is_file():
            info = info or load_dataset_info(path)
            files = [pair.mask for pair in list_pairs(path, "train") if pair.mask]
        else:
            files = list_images(path)
        if not files:
            raise InputError(f"{path}: contains no masks")
        known = info or DatasetInfo(name=path.resolve().name, class_names=name_classes(find_mask_values(files)))
        total = len(files) if count is None else count
        numbered = (files[number % len(files)] for number in range(total))
        return known, total, ((file.name, load_mask(file, known)) for file in numbered)
    values = load_json(path)
    if not isinstance(values, dict) or "mask_source" not in values:
        raise InputError(f"{path}: has no mask_source, as configs of `steelgen sample` have")
    config = parse_config({"mask_source": values["mask_source"]}, _Layouts, origin=str(path)).mask_source
    if isinstance(config, NoMasks | ImageMasks):
        raise InputError(f"{path}: mask_source.kind {config.kind!r} makes no layouts")
    geometry = CropGeometry(size.image_size, size.crop_size or size.image_size)
    if isinstance(config, LearnedMasks):
        generator = load_generator(config.generator)
        info, geometry = info or generator.info, generator.geometry
    elif info is None:
        if isinstance(config, FolderMasks):
            raise InputError(f"{path}: mask_source.kind 'folder' needs classes; render the folder itself")
        info = load_dataset_info(config.dataset)
    source = build_mask_source(config, info, geometry, seed)
    total = DEFAULT_COUNT if count is None else count
    drawn = (source.draw(number) for number in range(total))
    return info, total, ((mask.source, mask.mask) for mask in drawn)

"""Where the masks of generated images come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from steelgen.bundled import resolve_bundled
from steelgen.config.sample import (
    FolderMasks,
    SplitMasks,
)
from steelgen.data.classes import declare_classes
from steelgen.data.crops import CropDataset, cut_crop, load_micrographs
from steelgen.data.folder import DatasetInfo, list_images, load_dataset_info, load_mask
from steelgen.data.placement import CropGeometry, apply_symmetry, sample_symmetry, scale_whole
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError
from steelgen.sampling.places import ImagePlace, place_crop


@dataclass(frozen=True)
class SourceMask:
    """A mask to draw an image for."""

    mask: NDArray[np.uint8]
    """(S, S) class indices; (H, W) for whole micrographs."""
    image: NDArray[np.uint8] | None
    """The real micrograph that belongs to it, where there is one."""
    source: str
    """What it was cut from."""
    place: ImagePlace | None = None
    """Where `image` was cut from, where there is one."""


class MaskSource(Protocol):
    """Gives mask number i, a pure function of i: so any part of a sampling run can be drawn anywhere.

    This is all that a run asks of a source. A new kind (a learned mask generator, say) is a class with `draw`, a config
    section in `AnyMasks`, and a line in `build_mask_source`.
    """

    def draw(self, index: int) -> SourceMask:
        """Mask number `index` ≥ 0."""
        ...


@runtime_checkable
class FileMaskSource(MaskSource, Protocol):
    """Masks that come from one file each."""

    @property
    def stems(self) -> list[str]:
        """The stems of all files, each once."""
        ...

    def trace(self, index: int) -> str:
        """The stem of the file that mask number `index` comes from."""
        ...


def load_source_info(dataset: Path, info: DatasetInfo) -> DatasetInfo:
    """Reads the classes of a dataset folder whose masks a generator of the classes `info` is to draw.

    Raises:
        InputError: if it is no dataset folder or has another number of classes.
    """
    own = load_dataset_info(dataset)
    try:
        return declare_classes(own, info.num_classes, dataset)
    except InputError:
        message = f"{dataset}: has {own.num_classes} classes, the generator was trained with {info.num_classes}"
        raise InputError(message) from None


class NoSource:
    """Masks of nothing but ignored pixels, which the network does not see."""

    def __init__(self, info: DatasetInfo, geometry: CropGeometry) -> None:
        self._mask = np.full((geometry.image_size, geometry.image_size), info.ignore_index, np.uint8)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`; the same for every index."""
        return SourceMask(self._mask, None, "")


class TracedCrops:
    """What a `FileMaskSource` tells of masks that are cut from micrographs."""

    _crops: CropDataset

    @property
    def stems(self) -> list[str]:
        """See `FileMaskSource.stems`."""
        return self._crops.micrographs.stems

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        return self.stems[self._crops.micrograph_index(index)]


class SplitSource(TracedCrops):
    def __init__(self, config: SplitMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        load_source_info(config.dataset, info)
        micrographs = load_micrographs(config.dataset, config.split, geometry.in_channels)
        self._crops = CropDataset(micrographs, geometry, seed, config.augment, in_order=config.in_order)
        self._config = config

    def draw(self, index: int) -> SourceMask:
        config, crops = self._config, self._crops
        micrographs, number = crops.micrographs, crops.micrograph_index(index)
        micrograph, mask, stem = micrographs.images[number], micrographs.masks[number], micrographs.stems[number]
        if config.whole:
            scaled = scale_whole(mask, crops.geometry)
            symmetry = sample_symmetry(config.augment, np.random.default_rng((crops.seed, index)))
            place = ImagePlace(str(config.dataset), config.split, stem, (0, 0, *mask.shape), scaled.shape, symmetry)
            cut = apply_symmetry(scaled, symmetry)
        else:
            placement = crops.place(index)
            place, cut = place_crop(config.dataset, config.split, stem, placement), placement.cut_mask(mask)
        return SourceMask(cut, place.cut_image(micrograph), f"{config.split}/masks/{stem}", place)


class FolderSource:
    def __init__(self, config: FolderMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        folder = resolve_bundled(config.folder)
        rejects = load_rejects(folder)
        self._paths = [path for path in list_images(folder) if path.stem not in rejects]
        if not self._paths:
            raise InputError(f"{config.folder}: holds no mask images")
        # All are read once, so that a bad one is named before anything is drawn, but none is kept.
        for path in self._paths:
            mask = load_mask(path, info)
            if min(mask.shape) < geometry.image_size:
                raise InputError(
                    f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, smaller than the generator's "
                    f"image_size {geometry.image_size}"
                )
        self._info, self._geometry, self._seed, self._config = info, geometry, seed, config

    def draw(self, index: int) -> SourceMask:
        number = index % len(self._paths)
        rng = np.random.default_rng((self._seed, index))
        mask = load_mask(self._paths[number], self._info)
        if mask.shape == (self._geometry.image_size,) * 2:
            # A mask of the network's own size is a finished mask, not a micrograph to cut from.
            geometry = CropGeometry(self._geometry.image_size, self._geometry.image_size)
        else:
            geometry = self._geometry
        if self._config.whole:
            cut = apply_symmetry(scale_whole(mask, geometry), sample_symmetry(self._config.augment, rng))
        else:
            _, cut = cut_crop(mask, mask, geometry, rng, self._config.augment)
        return SourceMask(cut, None, self._paths[number].name)

    @property
    def stems(self) -> list[str]:
        """See `FileMaskSource.stems`."""
        return [path.stem for path in self._paths]

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        return self._paths[index % len(self._paths)].stem

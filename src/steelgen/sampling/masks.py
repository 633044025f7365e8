"""Mask sources: their protocols, and masks cropped from dataset folders and mask folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from steelgen.bundled import resolve_bundled
from steelgen.config.mask_sources import AugmentedMasks, BalancedMasks, FolderMasks, SplitMasks
from steelgen.data.classes import declare_classes
from steelgen.data.crops import CropDataset, Micrographs, cut_crop, load_micrographs
from steelgen.data.folder import DatasetInfo, list_images, load_dataset_info, load_mask
from steelgen.data.mixture import match_classes, move_classes
from steelgen.data.placement import (
    CropGeometry,
    Placement,
    apply_symmetry,
    resize_image,
    resize_mask,
    sample_symmetry,
    scale_whole,
)
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError


@dataclass(frozen=True)
class ImagePlace:
    """The window of a micrograph that a real image is cut from; it is resized, then rotated and mirrored."""

    dataset: str
    """Dataset folder."""
    split: str
    stem: str
    """File stem of the micrograph."""
    window: tuple[int, int, int, int]
    """Top, left, height and width, in px of the micrograph."""
    size: tuple[int, int]
    """Height and width of the image."""
    symmetry: int
    """See `apply_symmetry`."""

    def cut_image(self, micrograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cuts the image from its micrograph, (H, W) or (H, W, 3) uint8."""
        top, left, height, width = self.window
        window = np.ascontiguousarray(micrograph[top : top + height, left : left + width])
        return apply_symmetry(resize_image(window, *self.size), self.symmetry)

    def cut_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cuts the mask of the image from that of its micrograph, (H, W) class indices."""
        top, left, height, width = self.window
        window = np.ascontiguousarray(mask[top : top + height, left : left + width])
        return apply_symmetry(resize_mask(window, *self.size), self.symmetry)


@dataclass(frozen=True)
class SourceMask:
    """A mask to generate an image for."""

    mask: NDArray[np.uint8]
    """(S, S) class indices; (H, W) for whole micrographs."""
    image: NDArray[np.uint8] | None
    """Image of the mask, if any: a real micrograph, or what a generator turns into another image."""
    source: str
    """Name of the file or layout that the mask comes from."""
    place: ImagePlace | None = None
    """Window of `image`, if any."""
    origin: Mapping[str, Any] | None = None
    """How a generator made the mask, for metadata.jsonl."""
    emphasis: float | None = None
    """Weight by which the mask was chosen, 1 for an average one; None without emphasis."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the mask in px."""
        height, width = self.mask.shape
        return height, width


class MaskSource(Protocol):
    """Returns mask i as a pure function of i, so that any part of a run can be sampled on any machine.

    To add a mask source, write a class with `draw`, a config section in `AnyMasks` and a line in `build_mask_source`.
    """

    def draw(self, index: int) -> SourceMask:
        """Returns mask number `index` ≥ 0."""
        ...


@runtime_checkable
class BatchedMaskSource(MaskSource, Protocol):
    """A mask source that runs a network, in the main process."""

    def draw_batch(self, indices: Sequence[int]) -> list[SourceMask]:
        """Returns masks by number, the same as `draw`."""
        ...


@runtime_checkable
class FileMaskSource(MaskSource, Protocol):
    """A mask source that takes each mask from one file."""

    stems: list[str]
    """Stems of all files."""

    def trace(self, index: int) -> str:
        """Returns the stem of the file of mask number `index`."""
        ...


def load_source(dataset: Path, split: str, info: DatasetInfo, in_channels: int = 1) -> Micrographs:
    """Loads a split whose masks have the generator's classes `info`.

    A generator of several datasets also takes the masks of one of them: its classes are found by name.

    Raises:
        InputError: if it is not a dataset folder, or has classes that the generator does not have.
    """
    own = load_dataset_info(dataset)
    micrographs = load_micrographs(dataset, split, in_channels)
    if own.num_classes != info.num_classes and own.num_classes and (planes := match_classes(own, info)):
        masks = [move_classes(mask, planes, own.ignore_index) for mask in micrographs.masks]
        return replace(micrographs, info=info, masks=masks)
    try:
        return replace(micrographs, info=declare_classes(own, info.num_classes, dataset))
    except InputError:
        message = f"{dataset}: has {own.num_classes} classes, the generator was trained with {info.num_classes}"
        raise InputError(message) from None


class NoSource:
    """Masks in which every pixel is ignored, for unlabeled images and for generators that make masks.

    Args:
        size: (H, W) in px; None is the generator's image_size.

    Raises:
        InputError: if the size is smaller than image_size.
    """

    def __init__(self, info: DatasetInfo, geometry: CropGeometry, size: tuple[int, int] | None = None) -> None:
        edge = geometry.image_size
        if size is not None and min(size) < edge:
            raise InputError(f"mask_source.size {list(size)}: smaller than the generator's image_size {edge}")
        self._mask = np.full(size or (edge, edge), info.ignore_index, np.uint8)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`; every mask is the same."""
        return SourceMask(self._mask, None, "")


class CropSource:
    """Base class of the `FileMaskSource`s that crop the micrographs of a split.

    Raises:
        InputError: if the dataset cannot be used or has other classes than the generator.
    """

    _config: SplitMasks | AugmentedMasks | BalancedMasks

    def __init__(
        self,
        config: SplitMasks | AugmentedMasks | BalancedMasks,
        info: DatasetInfo,
        geometry: CropGeometry,
        seed: int,
        augment: bool = False,
        in_order: bool = False,
    ) -> None:
        micrographs = load_source(config.dataset, config.split, info, geometry.in_channels)
        self._info = micrographs.info
        self._crops = CropDataset(micrographs, geometry, seed, augment, in_order=in_order)
        self._config, self.stems = config, micrographs.stems

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        return self.stems[self._crops.micrograph_index(self._crop_number(index))]

    def _crop_number(self, index: int) -> int:
        return index

    def _cut_pair(self, number: int, placement: Placement) -> SourceMask:
        """Cuts a crop without rotation or gray-level variation."""
        mask = placement.cut_mask(self._crops.micrographs.masks[self._crops.micrograph_index(number)])
        window = (placement.top, placement.left, placement.edge, placement.edge)
        return self._build_pair(number, mask, window, (placement.size, placement.size), placement.symmetry)

    def _build_pair(
        self,
        number: int,
        mask: NDArray[np.uint8],
        window: tuple[int, int, int, int],
        size: tuple[int, int],
        symmetry: int,
    ) -> SourceMask:
        """Adds the window of the micrograph of crop `number` to its mask; see `ImagePlace`."""
        index = self._crops.micrograph_index(number)
        stem = self.stems[index]
        place = ImagePlace(str(self._config.dataset), self._config.split, stem, window, size, symmetry)
        image = place.cut_image(self._crops.micrographs.images[index])
        return SourceMask(mask, image, f"{self._config.split}/masks/{stem}", place)


class SplitSource(CropSource):
    """See `SplitMasks`."""

    _config: SplitMasks

    def __init__(self, config: SplitMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        super().__init__(config, info, geometry, seed, config.augment, config.in_order)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        crops = self._crops
        if not self._config.whole:
            return self._cut_pair(index, crops.place(index))
        mask = crops.micrographs.masks[crops.micrograph_index(index)]
        scaled = scale_whole(mask, crops.geometry)
        symmetry = sample_symmetry(self._config.augment, np.random.default_rng((crops.seed, index)))
        window = (0, 0, *mask.shape)
        return self._build_pair(index, apply_symmetry(scaled, symmetry), window, scaled.shape, symmetry)


class FolderSource:
    """See `FolderMasks`.

    Raises:
        InputError: if there are no masks, or one is unreadable, too small or has unknown class indices.
    """

    def __init__(self, config: FolderMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        folder, size = resolve_bundled(config.folder), geometry.image_size
        rejects = load_rejects(folder)
        self._paths = [path for path in list_images(folder) if path.stem not in rejects]
        if not self._paths:
            raise InputError(f"{config.folder}: contains no mask images")
        self.stems = [path.stem for path in self._paths]
        # Checks every mask before the first image is generated, without keeping them in memory.
        for path in self._paths:
            h, w = load_mask(path, info).shape
            if min(h, w) < size:
                raise InputError(f"{path}: the mask is {w}x{h}, smaller than the generator's image_size {size}")
        self._info, self._geometry, self._seed, self._config = info, geometry, seed, config

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        path = self._paths[index % len(self._paths)]
        rng = np.random.default_rng((self._seed, index))
        mask, geometry = load_mask(path, self._info), self._geometry
        if mask.shape == (geometry.image_size, geometry.image_size):
            # A mask of the network's image size is used as it is, not cropped and resized.
            geometry = CropGeometry(geometry.image_size, geometry.image_size)
        if self._config.whole:
            cut = apply_symmetry(scale_whole(mask, geometry), sample_symmetry(self._config.augment, rng))
        else:
            _, cut = cut_crop(mask, mask, geometry, rng, self._config.augment)
        return SourceMask(cut, None, path.name)

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        return self.stems[index % len(self.stems)]


def build_stems(source: MaskSource, batch_size: int) -> Callable[[int], str]:
    """Builds the function from image number to file stem that names images after mask files, as ISDM does.

    The stem is NAME_<batch>: the mask file's stem up to its first dot, and number // batch_size. Unlike in ISDM, stems
    are unique: a mask that repeats within a batch gives NAME_<batch>-2, and file stems that are equal up to their first
    dot are not cut there.

    Raises:
        InputError: if the masks are not from files, or two files have the same stem.
    """
    if not isinstance(source, FileMaskSource):
        raise InputError("file_stems 'source': this mask source does not take each mask from one file; use 'number'")
    stem, uses = Counter(source.stems).most_common(1)[0]
    if uses > 1:
        raise InputError(f"file_stems 'source': {uses} masks have the stem {stem!r}; use 'number'")
    cut = len({stem.split(".")[0] for stem in source.stems}) == len(source.stems)

    def name(index: int) -> str:
        batch, stem = index // batch_size, source.trace(index)
        repeats = sum(source.trace(other) == stem for other in range(batch * batch_size, index))
        return f"{stem.split('.')[0] if cut else stem}_{batch}" + (f"-{repeats + 1}" if repeats else "")

    return name

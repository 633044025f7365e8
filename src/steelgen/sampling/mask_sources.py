"""Construction of mask sources from a config."""

from __future__ import annotations

from dataclasses import replace

from steelgen.config.learned import LearnedMasks
from steelgen.config.mask_sources import (
    AnyMasks,
    AugmentedMasks,
    BalancedMasks,
    FolderMasks,
    ImageMasks,
    NoMasks,
    ProceduralMasks,
    SplitMasks,
    has_masks,
)
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import DatasetInfo, load_dataset_info
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.sampling.augmented import AugmentedSource
from steelgen.sampling.balance import BalancedSource
from steelgen.sampling.images import ImageSource
from steelgen.sampling.learned import LearnedSource
from steelgen.sampling.masks import FolderSource, MaskSource, NoSource, SourceMask, SplitSource
from steelgen.sampling.procedural import ProceduralSource

_START_SEED_OFFSET = 2**32
"""Seed offset of start images; with the seed of the masks, each mask would get its own micrograph."""


def find_label_classes(config: SampleConfig, info: DatasetInfo) -> DatasetInfo:
    """Returns the classes of the masks: those of the generator, `info`, or of the dataset of the masks if it has none
    and each image starts from the mask's own micrograph, whose labels it keeps."""
    masks, start = config.mask_source, config.start_images
    if info.num_classes or start is None or start.dataset or not isinstance(masks, SplitMasks | BalancedMasks):
        return info
    return load_dataset_info(masks.dataset)


def build_mask_source(
    config: AnyMasks, info: DatasetInfo, geometry: CropGeometry, seed: int, factor: int = 1
) -> MaskSource:
    """Builds the mask source of a config for a generator's classes and crop geometry.

    Args:
        factor: of a refining generator, whose images in a folder are smaller than their masks.

    Raises:
        InputError: if there are no masks, or their classes differ from the generator's.
    """
    if isinstance(config, NoMasks):
        return NoSource(info, geometry, config.size)
    if not info.num_classes and has_masks(config):
        instead = "set masks to null" if isinstance(config, ImageMasks) else "use kind 'none'"
        raise InputError(f"mask_source.kind {config.kind!r}: the generator was trained without masks; {instead}")
    if isinstance(config, ImageMasks):
        return ImageSource(config, info, geometry, factor)
    if isinstance(config, LearnedMasks):
        return LearnedSource(config, info, geometry, seed)
    if isinstance(config, SplitMasks):
        return SplitSource(config, info, geometry, seed)
    if isinstance(config, BalancedMasks):
        return BalancedSource(config, info, geometry, seed)
    if isinstance(config, AugmentedMasks):
        return AugmentedSource(config, info, geometry, seed)
    if isinstance(config, ProceduralMasks):
        return ProceduralSource(config, info, geometry, seed)
    return FolderSource(config, info, geometry, seed)


def replace_images(source: MaskSource, config: SampleConfig, info: DatasetInfo, geometry: CropGeometry) -> MaskSource:
    """Replaces the micrographs of `source` by those of `start_images.dataset`, if it is set.

    Raises:
        InputError: if the dataset cannot be used.
    """
    start, masks = config.start_images, config.mask_source
    if start is None or start.dataset is None:
        return source
    whole = isinstance(masks, SplitMasks | FolderMasks) and masks.whole
    images = SplitMasks(dataset=start.dataset, split=start.split, augment=start.augment, whole=whole)
    return _ReplacedImages(source, SplitSource(images, info, geometry, config.seed + _START_SEED_OFFSET))


class _ReplacedImages:
    """Masks of one source with the images of another."""

    def __init__(self, masks: MaskSource, images: MaskSource) -> None:
        self._masks, self._images = masks, images

    def draw(self, index: int) -> SourceMask:
        mask, real = self._masks.draw(index), self._images.draw(index)
        if mask.mask.shape != real.mask.shape:
            sizes = ["x".join(map(str, one.mask.shape[::-1])) for one in (real, mask)]
            raise InputError(f"start_images: the image of {real.source} is {sizes[0]} px, the mask is {sizes[1]} px")
        return replace(mask, image=real.image, place=real.place)

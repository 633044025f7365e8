"""From a config to the masks of a sampling run."""

from __future__ import annotations

from steelgen.config.sample import (
    AnyMasks,
    AugmentedMasks,
    BalancedMasks,
    FolderMasks,
    NoMasks,
    ProceduralMasks,
    SampleConfig,
    SplitMasks,
)
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.sampling.augmented import AugmentedSource
from steelgen.sampling.balance import BalancedSource
from steelgen.sampling.masks import FolderSource, MaskSource, NoSource, SourceMask, SplitSource
from steelgen.sampling.procedural import ProceduralSource

_OTHER_IMAGES = 2**32
"""Added to the seed where images are drawn that do not belong to the masks."""


def build_mask_source(config: AnyMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> MaskSource:
    """The mask source of a config, for a generator's classes and crop geometry.

    Raises:
        InputError: if there are no masks, or they have other classes than the generator.
    """
    if isinstance(config, NoMasks):
        return NoSource(info, geometry)
    if not info.num_classes:
        raise InputError(f"mask_source.kind {config.kind!r}: the generator was trained without masks; use kind 'none'")
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
    """`source` with the micrographs of `start_images.dataset` beside its masks; itself where none is named.

    Raises:
        InputError: if the dataset cannot be used.
    """
    start, masks = config.start_images, config.mask_source
    if start is None or start.dataset is None:
        return source
    whole = isinstance(masks, SplitMasks | FolderMasks) and masks.whole
    images = SplitMasks(dataset=start.dataset, split=start.split, augment=start.augment, whole=whole)
    # Another seed than the masks', or the same split would give each mask its own micrograph.
    return _OtherImages(source, SplitSource(images, info, geometry, config.seed + _OTHER_IMAGES))


class _OtherImages:
    """Masks of one source, real images of a split, whatever they show."""

    def __init__(self, masks: MaskSource, images: MaskSource) -> None:
        self._masks, self._images = masks, images

    def draw(self, index: int) -> SourceMask:
        drawn, real = self._masks.draw(index), self._images.draw(index)
        if drawn.mask.shape != real.mask.shape:
            sizes = ["x".join(map(str, mask.shape[::-1])) for mask in (real.mask, drawn.mask)]
            raise InputError(f"start_images: {real.source} gives an image of {sizes[0]} px for a mask of {sizes[1]} px")
        return SourceMask(drawn.mask, real.image, drawn.source, real.place)

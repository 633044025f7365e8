"""Images from a plain folder, with or without masks, for generators that turn images into others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelgen.config.mask_sources import ImageMasks
from steelgen.data.folder import DatasetInfo, index_by_stem, list_images, load_mask
from steelgen.data.images import load_image, load_image_size, to_channels
from steelgen.data.placement import CropGeometry, find_whole_size, resize_mask
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError
from steelgen.sampling.masks import ImagePlace, SourceMask


class ImageSource:
    """See `ImageMasks`.

    Raises:
        InputError: if there are no images, one is smaller than image_size, or a mask is missing, unreadable, of another
            size than its image (times the factor), or has unknown class indices.
    """

    def __init__(self, config: ImageMasks, info: DatasetInfo, geometry: CropGeometry, factor: int = 1) -> None:
        rejects = load_rejects(config.folder)
        images = index_by_stem(path for path in list_images(config.folder) if path.stem not in rejects)
        if not images:
            raise InputError(f"{config.folder}: contains no images")
        self._config, self._info, self._geometry, self._factor = config, info, geometry, factor
        self._images, self.stems = list(images.values()), list(images)
        self._masks = None if config.masks is None else index_by_stem(list_images(config.masks))
        # Checks all files before the first image is generated, without keeping them in memory.
        for path in self._images:
            height, width = load_image_size(path)
            if min(height, width) * factor < geometry.image_size:
                refined = f" ({geometry.image_size}, refined {factor} times)" if factor > 1 else ""
                raise InputError(
                    f"{path}: the image is {width}x{height}, smaller than the generator's image_size "
                    f"{geometry.image_size // factor}{refined}"
                )
            self._load_mask(path.stem, (height, width))

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        path, geometry = self._images[index % len(self._images)], self._geometry
        image = to_channels(load_image(path), geometry.in_channels)
        height, width = image.shape[:2]
        if self._factor > 1:
            place = ImagePlace(str(self._config.folder), "train", path.stem, (0, 0, height, width), (height, width), 0)
            return SourceMask(self._load_mask(path.stem, (height, width)), image, path.name, place)
        same = (height, width) == (geometry.image_size, geometry.image_size)
        size = (height, width) if same else find_whole_size((height, width), geometry)
        place = ImagePlace(str(self._config.folder), "train", path.stem, (0, 0, height, width), size, 0)
        mask = resize_mask(self._load_mask(path.stem, (height, width)), *size)
        return SourceMask(mask, place.cut_image(image), path.name, place)

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        return self.stems[index % len(self.stems)]

    def _load_mask(self, stem: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns the mask of an image of `size` (H, W), all ignored without masks."""
        factor = self._factor
        if self._masks is None:
            return np.full([factor * edge for edge in size], self._info.ignore_index, np.uint8)
        if stem not in self._masks:
            raise InputError(
                f"{self._config.masks}: has no mask {stem!r}, the stem of an image in {self._config.folder}"
            )
        mask = load_mask(self._masks[stem], self._info)
        if tuple(-(-edge // factor) for edge in mask.shape) != size:
            (h, w), (mh, mw) = size, mask.shape
            times = f", refined {factor} times" if factor > 1 else ""
            raise InputError(f"{self._masks[stem]}: the mask is {mw}x{mh}, but its image is {w}x{h}{times}")
        return mask

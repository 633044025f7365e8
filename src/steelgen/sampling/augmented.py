"""Augmented masks: rotated and warped real masks whose islands are moved and phase fractions adjusted."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from steelgen.config.mask_sources import AugmentedMasks
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry, resize_mask
from steelgen.errors import InputError
from steelgen.sampling.footprints import adjust_area, find_matrix, place_anywhere, rotate_footprint, smooth_noise
from steelgen.sampling.masks import CropSource, SourceMask

_MAX_DONORS = 8
"""Masks from which islands are added to reach a phase fraction; after that, the islands present are grown."""
_STREAM = 2
"""Separates the random stream from that of crops."""


class AugmentedSource(CropSource):
    """See `AugmentedMasks`."""

    _config: AugmentedMasks

    def __init__(self, config: AugmentedMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        super().__init__(config, info, geometry, seed)
        self._info, self._seed = info, seed
        self._matrix = find_matrix(self._crops.micrographs.masks, info.num_classes)
        self._fractions = resolve_fractions(config.phase_fraction, info, self._matrix)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        rng = np.random.default_rng((self._seed, index, _STREAM))
        number = self._crops.micrograph_index(index)
        mask = self._cut(number, rng)
        move_islands(mask, self._matrix, self._info, self._config.move_share, self._config.island_scale, rng)
        for label, fraction in self._fractions.items():
            self._adjust_fraction(mask, label, fraction, rng)
        return SourceMask(mask, None, f"{self._config.split}/masks/{self.stems[number]}")

    def _cut(self, number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        config, geometry = self._config, self._crops.geometry
        low, high = np.log(geometry.scale_range)
        edge = round(geometry.crop_size * float(np.exp(rng.uniform(low, high))))
        angle = rng.uniform(-config.max_rotation, config.max_rotation)
        flip = config.flip and bool(rng.integers(2))
        mask = cut_warped(
            self._crops.micrographs.masks[number], edge, angle, flip, config.warp, config.warp_length, rng
        )
        return resize_mask(mask, geometry.image_size, geometry.image_size)

    def _adjust_fraction(self, mask: NDArray[np.uint8], label: int, fraction: float, rng: np.random.Generator) -> None:
        wanted = round(fraction * int((mask != self._info.ignore_index).sum()))
        for _ in range(_MAX_DONORS):
            if int((mask == label).sum()) >= wanted:
                break
            donor = self._cut(int(rng.integers(len(self._crops.micrographs))), rng)
            islands = list(find_islands(donor, label))
            for number in rng.permutation(len(islands)):
                turned = rotate_footprint(islands[number].footprint, rng.uniform(0, 360), 1.0)
                place_anywhere(mask, turned, label, self._matrix, rng)
                if int((mask == label).sum()) >= wanted:
                    break
        adjust_area(mask, label, self._matrix, wanted, rng)


def resolve_fractions(phase_fraction: dict[str, float], info: DatasetInfo, matrix: int) -> dict[int, float]:
    """Converts phase fractions by class name to class indices.

    Raises:
        InputError: if a class is unknown or is the matrix, or the matrix is left with less than a tenth.
    """
    field, fractions = "mask_source.phase_fraction", {}
    for name, fraction in phase_fraction.items():
        if name not in info.class_names:
            raise InputError(f"{field}: {name!r} is not among the classes {', '.join(info.class_names)}")
        if info.class_names.index(name) == matrix:
            raise InputError(f"{field}: {name!r} is the matrix, which takes the area that the other classes leave")
        fractions[info.class_names.index(name)] = fraction
    if sum(fractions.values()) > 0.9:
        raise InputError(f"{field}: fractions add up to {sum(fractions.values()):g}, more than 0.9")
    return fractions


def cut_warped(
    mask: NDArray[np.uint8],
    edge: int,
    angle: float,
    flip: bool,
    warp: float,
    warp_length: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Cuts a rotated, mirrored and elastically warped square; the mask is reflected at its border.

    The warp is that of Simard et al. 2003 (ICDAR): smoothed random displacements.

    Args:
        mask: (H, W) class indices.
        edge: edge of the square, in pixels of the mask.
        angle: degrees.
        warp: standard deviation of the displacement, px.
        warp_length: correlation length of the displacement, px.

    Returns:
        (edge, edge) class indices.
    """
    steps = np.arange(edge) - (edge - 1) / 2
    y, x = np.meshgrid(steps, -steps if flip else steps, indexing="ij")
    if warp > 0:
        y = y + warp * smooth_noise((edge, edge), warp_length, rng)
        x = x + warp * smooth_noise((edge, edge), warp_length, rng)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # Keeps the square inside the mask if the mask is large enough.
    half = edge / 2 * (abs(cosine) + abs(sine))
    center = [rng.uniform(min(half, size / 2), max(size - half, size / 2)) for size in mask.shape]
    rows, columns = center[0] + cosine * y - sine * x, center[1] + sine * y + cosine * x
    return scipy.ndimage.map_coordinates(mask, [rows - 0.5, columns - 0.5], order=0, mode="reflect")


def move_islands(
    mask: NDArray[np.uint8],
    matrix: int,
    info: DatasetInfo,
    share: float,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Moves islands to random places, in place, with random rotation and scale.

    Moved islands overlap and touch no other; one without a free place stays where it was, as do islands cut by the
    border.

    Args:
        mask: (H, W) class indices.
        matrix: class that fills the area of a moved island.
        info: classes; ignored pixels do not change.
        share: probability of moving an island.
        scale: range of the length scale factor, sampled log-uniformly.
    """
    islands = [
        island
        for label in range(info.num_classes)
        if label != matrix
        for island in find_islands(mask, label)
        if not island.touches_border and rng.random() < share
    ]
    for number in rng.permutation(len(islands)):
        island = islands[number]
        mask[island.window][island.footprint] = matrix
        factor = float(np.exp(rng.uniform(*np.log(scale))))
        turned = rotate_footprint(island.footprint, rng.uniform(0, 360), factor)
        if not place_anywhere(mask, turned, island.label, matrix, rng):
            mask[island.window][island.footprint] = island.label

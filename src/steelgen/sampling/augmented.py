"""Masks made from real ones: turned and warped, their islands cut out and placed anew, area shares as asked for."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from steelgen.config.sample import AugmentedMasks
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry, resize_mask
from steelgen.errors import InputError
from steelgen.sampling.footprints import (
    find_matrix,
    meet_area,
    place_anywhere,
    smooth_noise,
    turn_footprint,
)
from steelgen.sampling.masks import SourceMask, TracedCrops, load_source_info

_DONORS = 8
"""Masks that islands are taken from to meet an area share, before those that are there have to grow."""
_STREAM = 2
"""Keeps the random numbers apart from those of crops."""


class AugmentedSource(TracedCrops):
    """A `MaskSource` of rearranged real masks."""

    def __init__(self, config: AugmentedMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        load_source_info(config.dataset, info)
        micrographs = load_micrographs(config.dataset, config.split)
        self._crops = CropDataset(micrographs, geometry, seed, augment=False)
        self._config, self._info, self._seed = config, info, seed
        self._matrix = find_matrix(micrographs.masks, info.num_classes)
        self._shares = resolve_shares(config.phase_fraction, info, self._matrix)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        rng = np.random.default_rng((self._seed, index, _STREAM))
        number = self._crops.micrograph_index(index)
        mask = self._cut(number, rng)
        move_islands(mask, self._matrix, self._info, self._config.move_share, self._config.island_scale, rng)
        for label, share in self._shares.items():
            self._meet(mask, label, share, rng)
        stem = self._crops.micrographs.stems[number]
        return SourceMask(mask, None, f"{self._config.split}/masks/{stem}")

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

    def _meet(self, mask: NDArray[np.uint8], label: int, share: float, rng: np.random.Generator) -> None:
        counted = int((mask != self._info.ignore_index).sum())
        wanted = round(share * counted)
        for _ in range(_DONORS):
            if int((mask == label).sum()) >= wanted:
                break
            donor = self._cut(int(rng.integers(len(self._crops.micrographs))), rng)
            islands = list(find_islands(donor, label))
            for number in rng.permutation(len(islands)):
                turned = turn_footprint(islands[number].footprint, rng.uniform(0, 360), 1.0)
                place_anywhere(mask, turned, label, self._matrix, rng)
                if int((mask == label).sum()) >= wanted:
                    break
        meet_area(mask, label, self._matrix, wanted, rng)


def resolve_shares(phase_fraction: dict[str, float], info: DatasetInfo, matrix: int) -> dict[int, float]:
    """The area share asked for of each class index.

    Raises:
        InputError: if a class is unknown or the matrix itself, or the shares leave less than a tenth for the matrix.
    """
    shares = {}
    for name, share in phase_fraction.items():
        if name not in info.class_names:
            raise InputError(
                f"mask_source.phase_fraction: {name!r} is not among the classes {', '.join(info.class_names)}"
            )
        if info.class_names.index(name) == matrix:
            raise InputError(
                f"mask_source.phase_fraction: {name!r} is the matrix, which takes what the other classes leave"
            )
        shares[info.class_names.index(name)] = share
    if sum(shares.values()) > 0.9:
        raise InputError(f"mask_source.phase_fraction: shares add up to {sum(shares.values()):g}, more than 0.9")
    return shares


def cut_warped(
    mask: NDArray[np.uint8],
    edge: int,
    angle: float,
    flip: bool,
    warp: float,
    warp_length: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Cuts a turned, mirrored and elastically warped square; beyond its border the mask goes on as its mirror image.

    The warp is that of Simard et al. 2003 (ICDAR): smoothed random displacements.

    Args:
        mask: (H, W) class indices.
        edge: of the square, in pixels of the mask.
        angle: degrees.
        warp: standard deviation of the displacement, px.
        warp_length: distance over which it changes, px.

    Returns:
        (edge, edge) class indices.
    """
    steps = np.arange(edge) - (edge - 1) / 2
    y, x = np.meshgrid(steps, -steps if flip else steps, indexing="ij")
    if warp > 0:
        y = y + warp * smooth_noise((edge, edge), warp_length, rng)
        x = x + warp * smooth_noise((edge, edge), warp_length, rng)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # The center stays far enough from the border that the square lies within, where the mask is large enough.
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
    """Cuts islands out and places them anew, turned and scaled, in place; those that the border cuts stay.

    None overlaps or touches another; one for which no place is found goes back to where it was.

    Args:
        mask: (H, W) class indices.
        matrix: the class that fills where an island was.
        info: the classes; ignored pixels stay.
        share: probability of an island to be moved.
        scale: range of the factor on its length, drawn log-uniformly.
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
        turned = turn_footprint(island.footprint, rng.uniform(0, 360), factor)
        if not place_anywhere(mask, turned, island.label, matrix, rng):
            mask[island.window][island.footprint] = island.label

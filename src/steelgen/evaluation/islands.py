"""Islands of a set of images, described by a trained generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.cache import Micrographs
from steelgen.data.patches import Patch, PatchCenters, check_patch_size, select_island
from steelgen.data.placement import CropGeometry, Placement
from steelgen.generators.describing import Describer, Description

_AT_ONCE = 256
"""Patches held in memory at a time."""


class _Cut(NamedTuple):
    image: NDArray[np.uint8] | None
    island: NDArray[np.float32] | None


@dataclass(frozen=True)
class IslandSet:
    """Islands and their descriptions, row by row."""

    micrographs: Micrographs
    patches: list[Patch]
    description: Description
    describer: Describer
    centers: PatchCenters
    geometry: CropGeometry
    """Geometry of the patches in these images."""

    def __len__(self) -> int:
        return len(self.patches)

    def show(self, row: int) -> NDArray[np.uint8]:
        """Returns an island's patch as an image (S, S) or (S, S, 3): gray levels, or its mask in white."""
        cut = _cut(self.patches[row], self.micrographs, self.describer, self.centers, self.geometry)
        if cut.image is not None:
            return cut.image
        assert cut.island is not None
        return np.rint(255 * cut.island).astype(np.uint8)


def describe_islands(
    micrographs: Micrographs,
    describer: Describer,
    factor: float = 1.0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> IslandSet:
    """Finds and describes all islands, possibly none.

    Args:
        micrographs: a split, or generated images as micrographs.
        describer: see `load_describer`.
        factor: image pixels per pixel of the describer's training micrographs.
        report: receives (islands done, total islands).

    Raises:
        InputError: see `PatchCenters.find_labels`; also if a patch is larger than an image.
    """
    centers = describer.list_centers().rescale(factor)
    edge = max(1, round(describer.geometry.crop_size * factor))
    geometry = replace(describer.geometry, crop_size=edge, scale_range=(1.0, 1.0))
    check_patch_size(micrographs, [edge] * len(micrographs))
    patches = centers.find_any(micrographs)
    parts = []
    for start in range(0, len(patches), _AT_ONCE):
        report(start, len(patches))
        cuts = [_cut(patch, micrographs, describer, centers, geometry) for patch in patches[start : start + _AT_ONCE]]
        images = [cut.image for cut in cuts if cut.image is not None]
        islands = [cut.island for cut in cuts if cut.island is not None]
        parts.append(describer.describe(np.stack(images) if images else None, np.stack(islands) if islands else None))
    report(len(patches), len(patches))
    if parts:
        description = Description(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    else:
        empty = np.zeros(0, np.float32)
        pairs = np.zeros((0, 2), np.float32)
        description = Description(np.zeros((0, describer.latent_dim), np.float32), empty, pairs, empty, empty)
    return IslandSet(micrographs, patches, description, describer, centers, geometry)


def _cut(
    patch: Patch, micrographs: Micrographs, describer: Describer, centers: PatchCenters, geometry: CropGeometry
) -> _Cut:
    edge = geometry.crop_size
    (row, column), size = patch.center, geometry.image_size
    placement = Placement(row - edge // 2, column - edge // 2, edge, size, symmetry=0)
    image = placement.cut_image(micrographs.images[patch.micrograph]) if describer.sees_image else None
    if not describer.sees_island:
        return _Cut(image, None)
    shown = select_island(patch, micrographs, centers.kind, describer.neighbors)
    return _Cut(image, placement.cut_share(shown, mirrored=centers.kind == "grid" or describer.neighbors))

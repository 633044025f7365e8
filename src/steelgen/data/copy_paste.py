"""Crops with islands of other crops pasted into them: augmentation that makes new layouts without a generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelgen.config.utility import PasteSection
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.crops import Micrographs
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry, Variation

_PASTE_STREAM = 4
"""Random stream of pasting, independent of the crop positions."""
_DONORS = 2**20
"""Number of different donor crops."""


class PastedCrops(BalancedCrops):
    """`BalancedCrops` with islands of other random crops of the same micrographs pasted into them.

    This is the simple copy-paste of Ghiasi et al. 2021 (arXiv 2012.07177). A donor is a crop as any other, so islands
    come flipped, turned and at random places. Crop n is a pure function of the seed and n.

    Args:
        paste: how much is pasted.
        micrographs, geometry, seed, rare_share, augment, variation: see `BalancedCrops`.
    """

    def __init__(
        self,
        paste: PasteSection,
        micrographs: Micrographs,
        geometry: CropGeometry,
        seed: int,
        rare_share: float,
        augment: bool = True,
        variation: Variation | None = None,
    ) -> None:
        super().__init__(micrographs, geometry, seed, rare_share, augment, variation)
        self._paste = paste
        areas = sum(np.bincount(mask.ravel(), minlength=256) for mask in micrographs.masks)
        self._matrix = int(np.argmax(np.asarray(areas)[: micrographs.info.num_classes]))

    def cut(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Cuts crop number `number`, with islands of another crop in a fraction of all crops."""
        image, mask = super().cut(number)
        rng = np.random.default_rng((self.seed, number, _PASTE_STREAM))
        if rng.random() >= self._paste.share:
            return image, mask
        donor = super().cut(int(rng.integers(_DONORS)))
        num_classes = self.micrographs.info.num_classes
        chosen = choose_islands(donor[1], self._matrix, num_classes, self._paste.islands, rng)
        return paste_islands(image, mask, *donor, chosen, self._matrix, self._paste.blend)


def choose_islands(
    mask: NDArray[np.uint8], matrix: int, num_classes: int, probability: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Chooses each island of all classes but the matrix with a probability: (H, W) class indices → (H, W) pixels."""
    chosen = np.zeros(mask.shape, bool)
    for label in np.unique(mask):
        for island in find_islands(mask, int(label)) if label != matrix and label < num_classes else ():
            if rng.random() < probability:
                chosen[island.window] |= island.footprint
    return chosen


def paste_islands(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    donor_image: NDArray[np.uint8],
    donor_mask: NDArray[np.uint8],
    chosen: NDArray[np.bool_],
    matrix: int,
    blend: float,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pastes chosen pixels of a donor at the same place.

    The donor's gray levels are shifted so that its matrix is as bright as that of the image, if both show it.

    Args:
        image, donor_image: (H, W) or (H, W, 3).
        mask, donor_mask: (H, W) class indices.
        chosen: (H, W) pixels to paste.
        matrix: class index.
        blend: standard deviation of the Gaussian that blends the edges, px; 0 cuts sharply.
    """
    from scipy.ndimage import gaussian_filter

    around, donor_around = mask == matrix, donor_mask == matrix
    shift = image[around].mean() - donor_image[donor_around].mean() if around.any() and donor_around.any() else 0.0
    weight = gaussian_filter(chosen.astype(np.float32), blend) if blend else chosen.astype(np.float32)
    weight = weight if image.ndim == 2 else weight[..., None]
    mixed = weight * (donor_image + np.float32(shift)) + (1 - weight) * image
    return mixed.clip(0, 255).round().astype(np.uint8), np.where(chosen, donor_mask, mask)

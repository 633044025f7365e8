"""Training crops for segmentation: more of rare classes, and varied gray levels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.data.crops import CropDataset, Micrographs
from steelgen.data.placement import CropGeometry, Placement, Variation

_TARGET_STREAM, _VARIATION_STREAM = 2, 3
"""Keep what crops are cut around, and how they are varied, apart from where they lie."""
_KEPT_PIXELS = 512
"""Of each class and micrograph, by which crops are placed: all of them would fill the memory."""


class BalancedCrops(CropDataset):
    """As `CropDataset`, but a share of the crops is cut around a pixel of a class, rare classes as often as can be.

    The class is drawn by the inverse root of its area in the whole set, then one of the micrographs that hold it, then
    one of its pixels, which comes to lie anywhere in the crop's inner three fifths. Crop number n is a pure function
    of seed and n, as of all crops.

    Args:
        micrographs: the split.
        geometry: size of the crops.
        seed: with the crop's number it decides everything.
        rare_share: of the crops that are cut so, in [0, 1].
        augment, variation: as of `CropDataset`.
    """

    def __init__(
        self,
        micrographs: Micrographs,
        geometry: CropGeometry,
        seed: int,
        rare_share: float,
        augment: bool = True,
        variation: Variation | None = None,
    ) -> None:
        super().__init__(micrographs, geometry, seed, augment, variation)
        self.rare_share = rare_share
        rng, num_classes = np.random.default_rng(seed), micrographs.info.num_classes
        areas = np.zeros(num_classes)
        self._pixels: list[dict[int, NDArray[np.int32]]] = [{} for _ in range(num_classes)]
        for number, mask in enumerate(micrographs.masks):
            counts = np.bincount(mask.ravel(), minlength=256)[:num_classes]
            areas += counts
            for index in np.flatnonzero(counts) if rare_share else ():
                found = np.flatnonzero(mask.ravel() == index)
                kept = rng.choice(found, min(len(found), _KEPT_PIXELS), replace=False)
                self._pixels[index][number] = np.stack(np.divmod(kept, mask.shape[1]), axis=1).astype(np.int32)
        present = areas > 0
        chances = np.where(present, 1 / np.sqrt(np.maximum(areas, 1)), 0.0)
        self._chances = chances / max(chances.sum(), 1e-12)

    def micrograph_index(self, number: int) -> int:
        """Which micrograph crop number `number` is cut from."""
        target = self._target(number)
        return super().micrograph_index(number) if target is None else target[0]

    def place(self, number: int) -> Placement:
        """Where crop number `number` lies in its micrograph."""
        placement, target = super().place(number), self._target(number)
        if target is None:
            return placement
        index, pixel, within = target
        limits = np.array(self.micrographs.masks[index].shape) - placement.edge
        top, left = np.clip(np.round(pixel - within * placement.edge), 0, limits).astype(int)
        return replace(placement, top=int(top), left=int(left))

    def _target(self, number: int) -> tuple[int, NDArray[np.int32], NDArray[np.float64]] | None:
        """Micrograph, pixel, and where in the crop it shall lie, as shares of the edge; None for a crop at random."""
        rng = np.random.default_rng((self.seed, number, _TARGET_STREAM))
        if not self._chances.any() or rng.random() >= self.rare_share:
            return None
        by_micrograph = self._pixels[int(rng.choice(len(self._chances), p=self._chances))]
        index = list(by_micrograph)[int(rng.integers(len(by_micrograph)))]
        pixels = by_micrograph[index]
        return index, pixels[int(rng.integers(len(pixels)))], rng.uniform(0.2, 0.8, 2)


def vary_images(
    images: torch.Tensor,
    rng: np.random.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    gamma: float = 0.0,
    noise: float = 0.0,
    blur: float = 0.0,
) -> torch.Tensor:
    """Changes the gray levels of each image at random: gamma, contrast about its mean, brightness, blur, noise.

    Args:
        images: (N, C, H, W) in [-1, 1].
        rng: decides all of it.
        brightness: added or taken away, up to this share of the gray range.
        contrast: the factor lies between exp(-contrast) and exp(contrast).
        gamma: the power lies between exp(-gamma) and exp(gamma).
        noise: deviation of up to this share of the gray range, in every other image.
        blur: Gaussian of up to this many px, in one image of five.

    Returns:
        The same shape, clipped to [-1, 1].
    """
    from scipy.ndimage import gaussian_filter

    varied = []
    for image in images.numpy():
        x = ((image + 1) / 2).clip(0, 1) ** math.exp(rng.uniform(-gamma, gamma))
        mean = float(x.mean())
        x = (x - mean) * math.exp(rng.uniform(-contrast, contrast)) + (mean + rng.uniform(-brightness, brightness))
        blurred, noisy = rng.random(2)
        if blur and blurred < 0.2:
            x = gaussian_filter(x, (0, *2 * [rng.uniform(0, blur)]))
        if noise and noisy < 0.5:
            x = x + rng.uniform(0, noise) * rng.standard_normal(x.shape, dtype=np.float32)
        varied.append((2 * x - 1).clip(-1, 1))
    return torch.from_numpy(np.stack(varied))


def paste_rectangles(
    images: torch.Tensor, masks: torch.Tensor, share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a share of the crops gets a square of the next one, with its mask.

    Args:
        images: (N, C, S, S).
        masks: (N, S, S).
        share: in [0, 1].
        rng: decides which and where; edges are 0.3 to 0.7 of the crop's.
    """
    pasted, labels, size = images.clone(), masks.clone(), images.shape[-1]
    for index in range(len(images)):
        if rng.random() < share:
            edge = round(size * rng.uniform(0.3, 0.7))
            top, left = rng.integers(size - edge + 1, size=2)
            window = (..., slice(top, top + edge), slice(left, left + edge))
            other = (index + 1) % len(images)
            pasted[index][window], labels[index][window] = images[other][window], masks[other][window]
    return pasted, labels


def variation_rng(seed: int, step: int) -> np.random.Generator:
    """What `vary_images` and `paste_rectangles` draw from at a step: a function of both numbers alone."""
    return np.random.default_rng((seed, step, _VARIATION_STREAM))

"""Class-balanced and augmented training crops for segmentation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.data.crops import CropDataset, Micrographs
from steelgen.data.placement import CropGeometry, Placement, Variation

_TARGET_STREAM, _VARIATION_STREAM = 2, 3
"""Random streams of the target pixels and of the augmentation, independent of the crop positions."""
_KEPT_PIXELS = 512
"""Candidate pixels per class and micrograph; bounds the memory."""


class BalancedCrops(CropDataset):
    """`CropDataset` that oversamples rare classes.

    A fraction of the crops is cut around a pixel of a class. The class is sampled with probability proportional to
    1/√area in the whole set, then a micrograph that contains it, then one of its pixels, which is placed uniformly in
    the central 60 % of the crop. Crop n is a pure function of the seed and n.

    Args:
        micrographs: the split.
        geometry: size of the crops.
        seed: seed of all crops.
        rare_share: fraction of crops cut around a pixel of a class, in [0, 1].
        augment, variation: see `CropDataset`.
        weights: (N,) frequencies of the micrographs, at least one above 0; None shows all alike.
    """

    def __init__(
        self,
        micrographs: Micrographs,
        geometry: CropGeometry,
        seed: int,
        rare_share: float,
        augment: bool = True,
        variation: Variation | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(micrographs, geometry, seed, augment, variation)
        self.rare_share, self._weights = rare_share, weights
        if weights is not None:
            self._limits = np.cumsum(weights / weights.sum())
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
        """Returns the index of the micrograph of crop `number`."""
        target = self._target(number)
        return super().micrograph_index(number) if target is None else target[0]

    def place(self, number: int) -> Placement:
        """Returns the position of crop `number` in its micrograph."""
        placement, target = super().place(number), self._target(number)
        if target is None:
            return placement
        index, pixel, within = target
        limits = np.array(self.micrographs.masks[index].shape) - placement.edge
        top, left = np.clip(np.round(pixel - within * placement.edge), 0, limits).astype(int)
        return replace(placement, top=int(top), left=int(left))

    def _target(self, number: int) -> tuple[int, NDArray[np.int32], NDArray[np.float64]] | None:
        """Returns micrograph, pixel, and relative position of the pixel in the crop; None for a random crop."""
        rng = np.random.default_rng((self.seed, number, _TARGET_STREAM))
        if not self._chances.any() or rng.random() >= self.rare_share:
            return None
        by_micrograph = self._pixels[int(rng.choice(len(self._chances), p=self._chances))]
        index = self._choose_micrograph(list(by_micrograph), rng)
        if index is None:
            return None
        pixels = by_micrograph[index]
        return index, pixels[int(rng.integers(len(pixels)))], rng.uniform(0.2, 0.8, 2)

    def _choose_micrograph(self, indices: list[int], rng: np.random.Generator) -> int | None:
        """Chooses one of the micrographs with a class; None if all of them have weight 0."""
        if self._weights is None:
            return indices[int(rng.integers(len(indices)))]
        weights = self._weights[indices]
        return int(rng.choice(indices, p=weights / weights.sum())) if weights.any() else None


def vary_images(
    images: torch.Tensor,
    rng: np.random.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    gamma: float = 0.0,
    noise: float = 0.0,
    blur: float = 0.0,
) -> torch.Tensor:
    """Applies random gamma, contrast around the mean, brightness, blur, and noise to each image.

    Args:
        images: (N, C, H, W) in [-1, 1].
        rng: source of randomness.
        brightness: largest shift up or down, as a fraction of the gray range.
        contrast: the factor lies in [exp(-contrast), exp(contrast)].
        gamma: the exponent lies in [exp(-gamma), exp(gamma)].
        noise: largest standard deviation, as a fraction of the gray range; half of the images get noise.
        blur: largest Gaussian sigma, px; one image in five is blurred.

    Returns:
        (N, C, H, W), clipped to [-1, 1].
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
    """Applies CutMix (Yun et al. 2019, arXiv 1905.04899): pastes a square of the next crop and mask into some crops.

    Args:
        images: (N, C, S, S).
        masks: (N, S, S).
        share: fraction of crops to paste into, in [0, 1].
        rng: source of randomness; squares have 0.3 to 0.7 of the crop's edge.
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
    """Returns the source of randomness of `vary_images` and `paste_rectangles` at a step."""
    return np.random.default_rng((seed, step, _VARIATION_STREAM))

"""Are generated images copies of training images?

Pixels are searched exhaustively: every position in every training micrograph, in all 8 flips and rotations. A
library of random training crops would miss the crop that a generator happened to learn by heart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry, apply_symmetry, resize_image
from steelgen.evaluation.grey import turn_grey
from steelgen.evaluation.intervals import Interval, centre_interval, draw_weights

COPY_RATIO = 1 / 3
"""A generated image this much closer to one place than to any other is a copy of it (Yoon et al. 2023; Carlini)."""


@dataclass(frozen=True)
class Match:
    """The place in the training micrographs that an image is nearest to."""

    distance: float
    """Root mean square difference of the two, each without its mean, in grey levels."""
    second_distance: float
    """The same to the nearest place that does not overlap the first."""
    micrograph: int
    top: int
    left: int
    """Upper left corner, px of the micrograph."""
    symmetry: int
    """Element of the square's symmetry group (`apply_symmetry`) that brings the place onto the image."""

    @property
    def ratio(self) -> float:
        """First over second distance; 1 where both are 0, as between constant images."""
        return self.distance / self.second_distance if self.second_distance > 0 else 1.0


class PatchSearch:
    """Training micrographs, shrunk so that a crop has an edge of `search_size` px, ready to be searched by FFT.

    Args:
        micrographs: the training split.
        geometry: how images relate to micrographs; crops are searched at the nominal crop_size.
        search_size: px; smaller is faster and more tolerant of noise and of fractions of a pixel.
        device: torch device.
    """

    def __init__(self, micrographs: Micrographs, geometry: CropGeometry, search_size: int, device: str = "cpu") -> None:
        self.size = search_size
        self.scale = geometry.crop_size / search_size
        self.micrographs = micrographs
        self.crop_size = geometry.crop_size
        self._fields: list[_Field] = []
        self._greys: list[torch.Tensor] = []
        for image in micrographs.images:
            grey = torch.tensor(turn_grey(image[None])[0]).float()[None, None]
            self._greys.append(grey[0, 0])
            height, width = (max(search_size, round(edge / self.scale)) for edge in grey.shape[-2:])
            small = F.interpolate(grey, (height, width), mode="area")[0, 0].to(device)
            self._fields.append(_Field(small, search_size))

    def find(self, images: NDArray[np.uint8], own: list[Match] | None = None) -> list[Match]:
        """The nearest place of each image.

        Args:
            images: (N, S, S) or (N, S, S, 3) uint8.
            own: for images that were cut from the micrographs, where: places that overlap it do not count.
        """
        return [self._find_one(image, own[index] if own else None) for index, image in enumerate(turn_grey(images))]

    def cut(self, match: Match, size: int) -> NDArray[np.uint8]:
        """See `cut_match`."""
        return cut_match(self.micrographs, match, self.crop_size, size)

    def _find_one(self, image: NDArray[np.uint8], own: Match | None) -> Match:
        small = F.interpolate(torch.tensor(image).float()[None, None], (self.size, self.size), mode="area")[0, 0]
        # The image is turned, not the micrographs; the inverse turn brings the place found onto the image.
        turned = torch.stack([_apply(small, _INVERSE[symmetry]) for symmetry in range(8)])
        maps = []
        for index, field in enumerate(self._fields):
            squared = field.squared_distances(turned - turned.mean(dim=(1, 2), keepdim=True))
            if own is not None and own.micrograph == index:
                self._mask(squared, round(own.top / self.scale), round(own.left / self.scale))
            maps.append(squared)
        found = []
        for _ in range(2):
            best = [_argmin(squared) for squared in maps]
            index = int(np.argmin([value for value, *_ in best]))
            _, symmetry, top, left = best[index]
            self._mask(maps[index], top, left)
            found.append((*self._refine(turned[symmetry], index, top, left), index, symmetry))
        (distance, top, left, index, symmetry), (second, *_) = sorted(found, key=lambda place: place[0])
        return Match(distance, second, index, top, left, symmetry)

    def _refine(self, template: torch.Tensor, index: int, top: int, left: int) -> tuple[float, int, int]:
        """Distance and corner in px of the micrograph, from all corners within one shrunk pixel around."""
        grey, reach = self._greys[index], math.ceil(self.scale)
        edge = min(self.crop_size, *grey.shape)
        # Micrographs are shrunk to a whole number of pixels, so that the scale along each axis is its own.
        scales = [whole / part for whole, part in zip(grey.shape, self._fields[index].shape, strict=True)]
        step = max(1, reach // 4)
        corners = [
            sorted({min(max(0, round(at * scale) + by), whole - edge) for by in range(-reach, reach + 1, step)})
            for at, scale, whole in zip((top, left), scales, grey.shape, strict=True)
        ]
        places = [(row, column) for row in corners[0] for column in corners[1]]
        difference = shrink_windows(grey, places, edge, self.size) - template
        difference -= difference.mean(dim=(1, 2), keepdim=True)
        distances = (difference**2).mean(dim=(1, 2)).sqrt()
        nearest = int(torch.argmin(distances))
        return float(distances[nearest]), *places[nearest]

    def _mask(self, squared: torch.Tensor, top: int, left: int) -> None:
        reach = self.size - 1
        squared[:, max(0, top - reach) : top + self.size, max(0, left - reach) : left + self.size] = torch.inf


def cut_match(micrographs: Micrographs, match: Match, crop_size: int, size: int) -> NDArray[np.uint8]:
    """The place of a match as (size, size) or (size, size, 3) uint8, turned the way of the image.

    Args:
        micrographs: those that were searched.
        crop_size: edge of the place, px of the micrograph.
        size: edge of the result, px.
    """
    window = slice(match.top, match.top + crop_size), slice(match.left, match.left + crop_size)
    patch = np.ascontiguousarray(micrographs.images[match.micrograph][window])
    edge = min(patch.shape[:2])
    return apply_symmetry(resize_image(np.ascontiguousarray(patch[:edge, :edge]), size, size), match.symmetry)


def shrink_windows(field: torch.Tensor, corners: list[tuple[int, int]], edge: int, size: int) -> torch.Tensor:
    """Square windows of a field, shrunk by area as `F.interpolate` does it, from one table of sums.

    Args:
        field: (H, W).
        corners: K upper left corners.
        edge: of the windows, px.
        size: of the results.

    Returns:
        (K, size, size)
    """
    places = torch.tensor(corners)
    (top, left), (bottom, right) = (place.tolist() for place in (places.min(dim=0).values, places.max(dim=0).values))
    part = field[top : bottom + edge, left : right + edge].double()
    sums = F.pad(part.cumsum(dim=0).cumsum(dim=1), (1, 0, 1, 0))
    start = torch.arange(size) * edge // size
    end = -(-(torch.arange(1, size + 1) * edge) // size)
    rows = [(places[:, :1] - top + bound)[:, :, None] for bound in (start, end)]
    columns = [(places[:, 1:] - left + bound)[:, None, :] for bound in (start, end)]
    total = (
        sums[rows[1], columns[1]] - sums[rows[0], columns[1]] - sums[rows[1], columns[0]] + sums[rows[0], columns[0]]
    )
    return (total / ((end - start)[:, None] * (end - start)[None, :])).float()


class _Field:
    """One micrograph's spectrum, and the squared norm of each of its windows without the window's mean."""

    def __init__(self, field: torch.Tensor, size: int) -> None:
        self.shape, self.size = field.shape, size
        self.spectrum = torch.fft.rfft2(field)
        # In double precision: the difference of two large sums.
        box = torch.ones(1, 1, size, size, dtype=torch.float64, device=field.device)
        doubled = field.double()[None, None]
        mean = F.conv2d(doubled, box)[0, 0] / size**2
        self.norms = (F.conv2d(doubled**2, box)[0, 0] / size**2 - mean**2).clamp(min=0).float()

    def squared_distances(self, templates: torch.Tensor) -> torch.Tensor:
        """(K, size, size) templates of mean 0 → (K, H - size + 1, W - size + 1) mean squared differences."""
        spectrum = torch.fft.rfft2(templates.to(self.norms.device), self.shape)
        correlation = torch.fft.irfft2(self.spectrum * spectrum.conj(), self.shape)
        correlation = correlation[:, : self.norms.shape[0], : self.norms.shape[1]] / self.size**2
        return self.norms - 2 * correlation + (templates**2).mean(dim=(1, 2))[:, None, None].to(self.norms.device)


def compute_authenticity(to_train: NDArray, own_neighbour: NDArray) -> float:
    """Share of generated images that are farther from their nearest training image than that is from its own.

    Alaa et al. 2022 (arXiv 2102.08921), section 3.3; the share that is closer is 1 minus this.

    Args:
        to_train: (N,) distance of each generated image to its nearest training image.
        own_neighbour: (N,) distance of that training image to its own nearest neighbour in the training set.
    """
    return float((to_train >= own_neighbour).mean())


def compute_ct(generated_to_train: NDArray, held_out_to_train: NDArray) -> float:
    """C_T of Meehan et al. 2020 (arXiv 2004.05675), eq. 2, over the whole space as one cell.

    The z-score of the Mann-Whitney statistic that generated images are farther from the training set than held-out
    ones are: below -3 they are too close (copying), above 3 too far (underfitting).
    It takes images to be independent, which crops of one micrograph are not: with few held-out micrographs -4 is a
    hint and no proof.

    Args:
        generated_to_train: (M,) distances to the nearest training image.
        held_out_to_train: (N,) distances.
    """
    ones = np.ones((1, len(generated_to_train))), np.ones((1, len(held_out_to_train)))
    return float(_compute_ct(generated_to_train, held_out_to_train, *ones)[0])


def bootstrap_ct(generated_to_train: NDArray, held_out_to_train: NDArray, seed: int = 0) -> Interval:
    """95 % bootstrap interval of `compute_ct`, both sets being drawn again."""
    weights = [draw_weights(len(part), seed, i) for i, part in enumerate((generated_to_train, held_out_to_train))]
    return centre_interval(_compute_ct(generated_to_train, held_out_to_train, *weights))


def _compute_ct(
    generated: NDArray, held_out: NDArray, generated_weights: NDArray, held_out_weights: NDArray
) -> NDArray[np.float64]:
    """C_T of B resamples, given how often each of M and N distances occurs in them: (B, M) and (B, N) → (B,)."""
    m, n = len(generated), len(held_out)
    farther = np.heaviside(generated[:, None] - held_out[None, :], 0.5)
    statistic = ((generated_weights @ farther) * held_out_weights).sum(axis=1)
    return (statistic - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12)


def find_nearest(features: NDArray, library: NDArray, skip_self: bool = False) -> tuple[NDArray, NDArray]:
    """Nearest neighbours by Euclidean distance.

    Args:
        features: (N, D), or (N, K, D) with K variants of each image, of which the nearest counts.
        library: (M, D).
        skip_self: features and library are the same; an image is not its own neighbour.

    Returns:
        (N,) distances; (N,) indices into the library.
    """
    variants = features[:, None] if features.ndim == 2 else features
    square = (library.astype(np.float64) ** 2).sum(axis=1)
    nearest, indices = [], []
    for number, variant in enumerate(variants.astype(np.float64)):
        squared = ((variant**2).sum(axis=1)[:, None] + square - 2 * variant @ library.T).min(axis=0)
        if skip_self:
            squared[number] = np.inf
        index = int(np.argmin(squared))
        nearest.append(np.sqrt(max(squared[index], 0.0)))
        indices.append(index)
    return np.array(nearest), np.array(indices)


def _argmin(squared: torch.Tensor) -> tuple[float, int, int, int]:
    flat = int(torch.argmin(squared))
    symmetry, rest = divmod(flat, squared.shape[1] * squared.shape[2])
    top, left = divmod(rest, squared.shape[2])
    return float(squared.view(-1)[flat]), symmetry, top, left


def _apply(image: torch.Tensor, symmetry: int) -> torch.Tensor:
    turned = torch.rot90(image, symmetry % 4)
    return torch.flip(turned, dims=(1,)) if symmetry >= 4 else turned


# A rotation is undone by its opposite; a reflection by itself.
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)

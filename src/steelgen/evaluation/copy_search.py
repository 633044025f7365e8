"""Search of the training micrographs for the location nearest to an image.

Every position is compared in all 8 flips and rotations, by FFT on shrunk micrographs; the best locations are then
compared at full resolution. A library of random training crops could miss the crop that a generator has memorized. Of
many micrographs, a coarse level picks for each image those that may contain it; see `CoarseLevel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelgen.data.crops import Micrographs
from steelgen.data.images import to_channels
from steelgen.data.placement import CropGeometry, apply_symmetry, resize_image, resize_mask
from steelgen.evaluation.copy_candidates import CoarseLevel
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.evaluation.shrunk import ShrunkMicrograph, shrink, shrink_windows

CANDIDATES = 32
"""Micrographs searched at every position for each image; of more, a coarse level picks them."""
_SCALE_STEP = 1.06
"""Ratio of neighboring search scales, where crops have several."""
_COARSE_SCALES = 3
"""Neighboring search scales that share one coarse level."""
_SLACK = 0.25
"""How far the correlation of shrunk images may fall below the one at full resolution."""
_REFINED = 3
"""Locations that `correlate` refines at full resolution."""
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
"""Inverse of each symmetry: the opposite rotation, or the same reflection."""


@dataclass(frozen=True)
class Match:
    """The location in the training micrographs nearest to an image."""

    distance: float
    """Root mean square difference after subtracting the means, in gray levels."""
    second_distance: float
    """Distance to the nearest location that does not overlap the first."""
    micrograph: int
    top: int
    left: int
    """Upper left corner, in px of the micrograph."""
    symmetry: int
    """Symmetry (see `apply_symmetry`) that maps the location to the image."""

    @property
    def ratio(self) -> float:
        """First over second distance; 1 if both are 0, as for constant images."""
        return self.distance / self.second_distance if self.second_distance > 0 else 1.0


class Resemblance(NamedTuple):
    """The location in the training micrographs that correlates most with an image."""

    correlation: float
    """Pearson correlation of gray levels, refined at the image's resolution if high; -1 if nothing fits."""
    micrograph: int = -1
    symmetry: int = 0
    window: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, height and width, in px of the micrograph."""


class CopySearch:
    """FFT search over training micrographs, shrunk so that the edge of a crop is `search_size` px.

    Args:
        search_size: px; smaller is faster and more tolerant of noise and sub-pixel shifts.
        scale_range: crop sizes to search, relative to crop_size.
        blur: standard deviation in shrunk px of a Gaussian blur, so that sub-pixel shifts of fine textures are found.
        candidates: micrographs searched at every position for each image; None: all, however many there are.
    """

    def __init__(
        self,
        micrographs: Micrographs,
        geometry: CropGeometry,
        search_size: int = 32,
        device: str = "cpu",
        scale_range: tuple[float, float] = (1.0, 1.0),
        blur: float = 0.0,
        candidates: int | None = CANDIDATES,
    ) -> None:
        self.micrographs, self.geometry, self.size, self._blur = micrographs, geometry, search_size, blur
        steps = math.ceil(math.log(scale_range[1] / scale_range[0]) / math.log(_SCALE_STEP))
        factors = [float(factor) for factor in np.geomspace(*scale_range, steps + 1)]
        self._candidates = None if candidates is None or len(micrographs) <= candidates else candidates
        # All micrographs pass through one buffer: with a new array for each, the small results in between would split
        # the heap, which then grows by a micrograph each time.
        buffer = np.empty(max(mask.size for mask in micrographs.masks), np.float32)
        by_micrograph = [self._build_fields(index, factors, device, buffer) for index in range(len(micrographs))]
        self._scales = list(zip(*by_micrograph, strict=True))
        self._fields = [field for scale in self._scales for field in scale]
        self._coarse: list[CoarseLevel] = []
        if self._candidates:
            for start in range(0, len(factors), _COARSE_SCALES):
                middle = self._scales[start : start + _COARSE_SCALES]
                self._coarse.append(CoarseLevel([field.small for field in middle[len(middle) // 2]], search_size))

    def find(self, images: NDArray[np.uint8], own: list[Match] | None = None) -> list[Match]:
        """Finds the nearest location of each image.

        Args:
            images: (N, S, S) or (N, S, S, 3) uint8.
            own: where images were cut from the micrographs; locations that overlap it are excluded.
        """
        return [self._find_one(image, own[index] if own else None) for index, image in enumerate(images)]

    def cut(self, match: Match, size: int) -> NDArray[np.uint8]:
        """See `cut_match`."""
        return cut_match(self.micrographs, match, self._crop_size(match.micrograph), size)

    def correlate(self, image: NDArray[np.uint8], enough: float = 0.9) -> Resemblance:
        """Finds the location that correlates most with an image, (H, W) or (H, W, 3) uint8 at the generator's scale.

        Correlations well below `enough` are not refined at full resolution.
        """
        gray = to_channels(image, 1)
        turned = [apply_symmetry(gray, inverse) for inverse in _INVERSE]
        found: list[tuple[float, ShrunkMicrograph, int, float, float]] = []
        for odd in (0, 1):  # odd symmetries swap height and width
            shape = [max(round(edge * self.size / self.geometry.image_size), 1) for edge in turned[odd].shape]
            templates = torch.stack([shrink(torch.tensor(part), shape, self._blur) for part in turned[odd::2]])
            spectra: dict[tuple[int, ...], Tensor] = {}
            spread = templates.square().mean(dim=(1, 2))
            for field in self._pick(templates, normalized=True) if spread.min() > 1e-6 else ():
                if shape[0] > field.shape[0] or shape[1] > field.shape[1]:
                    continue
                covariances, variances = field.compare(templates, spectra)
                correlations = covariances / (variances.clamp(min=1e-6) * spread[:, None, None].to(variances)).sqrt()
                for number, part in enumerate(correlations):
                    top, left = divmod(int(part.argmax()), part.shape[1])
                    place = top * field.scales[0], left * field.scales[1]
                    found.append((float(part[top, left]), field, 2 * number + odd, *place))
        if not found:
            return Resemblance(-1.0)
        found.sort(key=lambda place: -place[0])
        best = found[:_REFINED] if found[0][0] >= enough - _SLACK else []
        refined = [self._align(turned[place[2]], *place[1:]) for place in best]
        return max(refined, default=Resemblance(found[0][0]), key=lambda place: place.correlation)

    def _align(
        self, image: NDArray[np.uint8], field: ShrunkMicrograph, symmetry: int, top: float, left: float
    ) -> Resemblance:
        """Searches within one shrunk pixel, then climbs pixel by pixel in position and size."""
        target = _standardize(image)
        source = to_channels(self.micrographs.images[field.micrograph], 1)
        aspect = image.shape[1] / image.shape[0]
        largest = min(source.shape[0], int(source.shape[1] / aspect))

        def compare(top: int, left: int, height: int) -> tuple[float, tuple[int, int, int, int]]:
            height = min(height, largest)
            width = round(height * aspect)
            top = min(max(top, 0), source.shape[0] - height)
            left = min(max(left, 0), source.shape[1] - width)
            window = np.ascontiguousarray(source[top : top + height, left : left + width])
            return float((_standardize(resize_image(window, *image.shape)) * target).sum()), (top, left, height, width)

        pixel = max(field.scales)
        reach = range(-math.ceil(pixel), math.ceil(pixel) + 1, max(1, round(pixel / 4)))
        height = round(image.shape[0] * field.edge / self.geometry.image_size)
        best = max(compare(round(top) + dy, round(left) + dx, height) for dy in reach for dx in reach)
        # Larger and smaller windows around the same center, if crops have several scales.
        several = len(self._scales) > 1
        sizes = [(-(d // 2) - e, -(d // 2) - f, d) for d in (2, -2, 1, -1) for e in (0, 1) for f in (0, 1)]
        moves = [(0, 1, 0), (1, 0, 0), (0, -1, 0), (-1, 0, 0), *(sizes if several else ())]
        improved = True
        while improved:
            top, left, height, _ = best[1]
            moved = max(compare(top + dy, left + dx, height + taller) for dy, dx, taller in moves)
            improved = moved[0] > best[0]
            best = max(best, moved)
        return Resemblance(best[0], field.micrograph, symmetry, best[1])

    def _crop_size(self, micrograph: int) -> int:
        return self.micrographs.fit_geometry(micrograph, self.geometry).crop_size

    def _find_one(self, image: NDArray[np.uint8], own: Match | None) -> Match:
        # The image is transformed, not the micrographs; the inverse maps the location found to the image.
        images = [torch.tensor(apply_symmetry(to_channels(image, 1), inverse)) for inverse in _INVERSE]
        turned = torch.stack([shrink(each, [self.size] * 2, self._blur) for each in images])
        fields = self._pick(turned, normalized=False)
        maps: list[Tensor] = []
        spectra: dict[tuple[int, ...], Tensor] = {}
        for field in fields:
            covariances, variances = field.compare(turned, spectra)
            maps.append(variances - 2 * covariances + turned.square().mean(dim=(1, 2))[:, None, None].to(variances))
            if own is not None and own.micrograph == field.micrograph:
                self._mask(maps[-1], round(own.top / field.scales[0]), round(own.left / field.scales[1]))
        found = []
        for _ in range(2):
            index = int(np.argmin([float(squared.min()) for squared in maps]))
            symmetry, top, left = (int(at) for at in np.unravel_index(int(maps[index].argmin()), maps[index].shape))
            self._mask(maps[index], top, left)
            found.append((*self._refine(turned[symmetry], fields[index], top, left), index, symmetry))
        (distance, top, left, index, symmetry), (second, *_) = sorted(found, key=lambda place: place[0])
        return Match(distance, second, fields[index].micrograph, top, left, symmetry)

    def _build_fields(
        self, micrograph: int, factors: list[float], device: str, buffer: NDArray[np.float32]
    ) -> list[ShrunkMicrograph]:
        pixels = to_channels(self.micrographs.images[micrograph], 1)
        gray = torch.from_numpy(buffer[: pixels.size].reshape(pixels.shape))
        gray.numpy()[:] = pixels
        edges, keep = [self._crop_size(micrograph) * factor for factor in factors], self._candidates is None
        return [ShrunkMicrograph(micrograph, gray, edge, self.size, self._blur, device, keep) for edge in edges]

    def _pick(self, templates: Tensor, normalized: bool) -> list[ShrunkMicrograph]:
        """Fields that may contain one of the templates (K, h, w), in their order; see `CoarseLevel.score`."""
        if self._candidates is None or min(templates.shape[1:]) < self.size:
            return self._fields
        scores = torch.stack([coarse.score(templates, normalized) for coarse in self._coarse])
        best = scores.flatten().topk(self._candidates, largest=False).indices
        chosen = [divmod(int(index), len(self.micrographs)) for index in best.sort().values]
        return [
            scale[micrograph]
            for level, micrograph in chosen
            for scale in self._scales[level * _COARSE_SCALES : (level + 1) * _COARSE_SCALES]
        ]

    def _refine(self, template: Tensor, field: ShrunkMicrograph, top: int, left: int) -> tuple[float, int, int]:
        """Smallest distance among all corners within one shrunk pixel, with the corner in px of the micrograph."""
        gray = torch.tensor(to_channels(self.micrographs.images[field.micrograph], 1))
        edge, reach = round(field.edge), math.ceil(field.edge / self.size)
        step = max(1, reach // 4)
        corners = [
            sorted({min(max(0, round(at * scale) + by), whole - edge) for by in range(-reach, reach + 1, step)})
            for at, scale, whole in zip((top, left), field.scales, gray.shape, strict=True)
        ]
        places = [(row, column) for row in corners[0] for column in corners[1]]
        difference = shrink_windows(gray, places, edge, self.size) - template
        difference -= difference.mean(dim=(1, 2), keepdim=True)
        distances = difference.square().mean(dim=(1, 2)).sqrt()
        nearest = int(torch.argmin(distances))
        return float(distances[nearest]), *places[nearest]

    def _mask(self, squared: Tensor, top: int, left: int) -> None:
        reach = self.size - 1
        squared[:, max(0, top - reach) : top + self.size, max(0, left - reach) : left + self.size] = torch.inf


def list_copies(
    matches: Sequence[Match], names: Sequence[str], stems: Sequence[str], shown: int, **columns: NDArray
) -> dict[str, Any]:
    """Lists copies and the closest matches for a report.

    Args:
        names: of the N images that `matches` belong to.
        stems: of the training micrographs.
        shown: number of closest matches.
        columns: (N,) further values of each image.

    Returns:
        `copies`, names; `closest`, a dictionary per image, that with the smallest ratio first.
    """
    ratios = np.array([match.ratio for match in matches])
    closest = [
        {
            "index": int(index),
            "generated": names[index],
            "micrograph": stems[matches[index].micrograph],
            **{name: float(values[index]) for name, values in columns.items()},
            **{name: getattr(matches[index], name) for name in ("distance", "ratio", "top", "left", "symmetry")},
        }
        for index in np.argsort(ratios)[:shown]
    ]
    return {
        "copies": [name for name, ratio in zip(names, ratios, strict=False) if ratio < COPY_RATIO],
        "closest": closest,
    }


def cut_match(micrographs: Micrographs, match: Match, crop_size: int, size: int) -> NDArray[np.uint8]:
    """Cuts the location of a match, with an edge of `crop_size` px of the micrograph, in the image's orientation.

    Returns:
        (size, size) or (size, size, 3) uint8.
    """
    patch = _cut_square(micrographs.images[match.micrograph], match, crop_size)
    return apply_symmetry(resize_image(patch, size, size), match.symmetry)


def cut_mask(micrographs: Micrographs, match: Match, crop_size: int, size: int) -> NDArray[np.uint8]:
    """Cuts the mask (size, size) of a location; see `cut_match`."""
    patch = _cut_square(micrographs.masks[match.micrograph], match, crop_size)
    return apply_symmetry(resize_mask(patch, size, size), match.symmetry)


def _cut_square(array: NDArray[np.uint8], match: Match, crop_size: int) -> NDArray[np.uint8]:
    patch = array[match.top : match.top + crop_size, match.left : match.left + crop_size]
    edge = min(patch.shape[:2])
    return np.ascontiguousarray(patch[:edge, :edge])


def _standardize(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    centered = image.astype(np.float32) - image.mean(dtype=np.float32)
    norm = float(np.linalg.norm(centered))
    return centered / norm if norm > 1e-3 else np.zeros_like(centered)

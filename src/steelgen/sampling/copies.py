"""Near-copies of training micrographs: the best correlation with any place of them, whichever way round."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.crops import Micrographs
from steelgen.data.images import to_channels
from steelgen.data.placement import CropGeometry, apply_symmetry, resize_image

_COARSE_EDGE = 32
"""Edge of the network's images in the coarse search, in pixels."""
_SCALE_STEP = 1.06
"""Ratio of neighbouring scales where crops were drawn at several."""
_BLUR = 1.0
"""σ in coarse pixels: a place between two coarse pixels is still found."""
_SLACK = 0.25
"""A coarse correlation may lie this far below the one looked for."""
_REFINED = 3
"""Coarse places that are looked at closely."""


class Match(NamedTuple):
    """Where in the micrographs an image is found."""

    correlation: float
    """Pearson correlation of grey levels, at the image's own resolution where it was close; -1 where nothing fits."""
    stem: str
    """The micrograph."""
    symmetry: int
    """Of the image, see `apply_symmetry`."""
    window: tuple[int, int, int, int]
    """Top, left, height, width in pixels of the micrograph."""


class _Place(NamedTuple):
    correlation: float
    micrograph: int
    symmetry: int
    edge: float
    top: float
    left: float


@dataclass(frozen=True)
class _Scale:
    edge: float
    """Source pixels that the network's image spans."""
    sizes: list[tuple[int, int]]
    """Of each coarse micrograph."""
    images: torch.Tensor
    """(M, h, w) coarse micrographs, filled up with zeros below and to the right."""
    spectra: torch.Tensor
    """(M, h, w // 2 + 1) complex."""
    norms: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """By the template's size: (M, rows, columns) norms of the centred windows, infinite where it does not fit."""


class CopyDetector:
    """Finds the place in training micrographs that an image resembles most.

    Args:
        micrographs: the training split.
        geometry: how its micrographs became the network's images; crops of all scales in its range are looked at.
    """

    def __init__(self, micrographs: Micrographs, geometry: CropGeometry) -> None:
        self._micrographs, self._geometry = micrographs, geometry
        low, high = geometry.scale_range
        steps = math.ceil(math.log(high / low) / math.log(_SCALE_STEP)) if high > low else 0
        factors = np.geomspace(low, high, steps + 1)
        self._scales = [_build_scale(micrographs, geometry.crop_size * float(factor)) for factor in factors]

    def find(self, image: NDArray[np.uint8], enough: float = 0.9) -> Match:
        """The best match of an image.

        Args:
            image: (H, W) or (H, W, 3) uint8, at the scale of the network's images.
            enough: correlations well below this one are reported as coarsely found.
        """
        grey = to_channels(image, 1)
        best: list[_Place] = []
        for symmetry in range(8):
            template = _shrink_template(apply_symmetry(grey, symmetry), self._geometry.image_size)
            for scale in self._scales:
                if place := _find_coarse(template, scale, symmetry):
                    best.append(place)
        best.sort(key=lambda place: -place.correlation)
        if not best:
            return Match(-1.0, "", 0, (0, 0, 0, 0))
        if best[0].correlation < enough - _SLACK:
            return self._describe(best[0], grey)
        return max((self._refine(place, grey) for place in best[:_REFINED]), key=lambda match: match.correlation)

    def _describe(self, place: _Place, grey: NDArray[np.uint8]) -> Match:
        turned = apply_symmetry(grey, place.symmetry)
        factor = place.edge / self._geometry.image_size
        height, width = (round(edge * factor) for edge in turned.shape)
        window = (round(place.top), round(place.left), height, width)
        return Match(place.correlation, self._micrographs.stems[place.micrograph], place.symmetry, window)

    def _refine(self, place: _Place, grey: NDArray[np.uint8]) -> Match:
        """The best window within one coarse pixel, and from there uphill pixel by pixel in place and size."""
        turned = apply_symmetry(grey, place.symmetry)
        wanted = _standardise(turned)
        source = to_channels(self._micrographs.images[place.micrograph], 1)
        aspect = turned.shape[1] / turned.shape[0]
        largest = min(source.shape[0], int(source.shape[1] / aspect))

        def compare(top: int, left: int, height: int) -> tuple[float, tuple[int, int, int, int]]:
            height = min(height, largest)
            width = round(height * aspect)
            top = min(max(top, 0), source.shape[0] - height)
            left = min(max(left, 0), source.shape[1] - width)
            window = np.ascontiguousarray(source[top : top + height, left : left + width])
            return float((_standardise(resize_image(window, *turned.shape)) * wanted).sum()), (top, left, height, width)

        pixel = place.edge / _COARSE_EDGE
        reach = range(-math.ceil(pixel), math.ceil(pixel) + 1, max(1, round(pixel / 4)))
        height = round(turned.shape[0] * place.edge / self._geometry.image_size)
        best = max(compare(round(place.top) + dy, round(place.left) + dx, height) for dy in reach for dx in reach)
        one_size = len(self._scales) == 1
        improved = True
        while improved:
            top, left, height, _ = best[1]
            around = [(top + dy, left + dx, height) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            if not one_size:
                around += [
                    (top - d // 2 - e, left - d // 2 - f, height + d)
                    for d in (2, -2, 1, -1)
                    for e in (0, 1)
                    for f in (0, 1)
                ]
            further = max(compare(*move) for move in around)
            improved = further[0] > best[0]
            best = max(best, further)
        return Match(best[0], self._micrographs.stems[place.micrograph], place.symmetry, best[1])


def _build_scale(micrographs: Micrographs, edge: float) -> _Scale:
    factor = _COARSE_EDGE / edge
    coarse: list[NDArray[np.float32]] = []
    for image in micrographs.images:
        grey = to_channels(image, 1)
        height, width = (max(round(size * factor), 1) for size in grey.shape)
        coarse.append(_shrink(grey, height, width))
    sizes = [(image.shape[0], image.shape[1]) for image in coarse]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    images = torch.zeros(len(coarse), height, width)
    for row, small in zip(images, coarse, strict=True):
        row[: small.shape[0], : small.shape[1]] = torch.from_numpy(small)
    return _Scale(edge, sizes, images, torch.fft.rfft2(images))


def _shrink(grey: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    small = Image.fromarray(grey.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    blurred = scipy.ndimage.gaussian_filter(np.asarray(small), _BLUR, mode="nearest")
    return (blurred - blurred.mean()).astype(np.float32)


def _shrink_template(grey: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    height, width = (max(round(size * _COARSE_EDGE / image_size), 1) for size in grey.shape)
    return _shrink(grey, height, width)


def _find_coarse(template: NDArray[np.float32], scale: _Scale, symmetry: int) -> _Place | None:
    """The best place of a template in all micrographs; None where it fits into none of them."""
    height, width = template.shape
    rows, columns = scale.images.shape[1] - height + 1, scale.images.shape[2] - width + 1
    norm = float(np.linalg.norm(template))
    if rows < 1 or columns < 1 or norm < 1e-3:
        return None
    padded = torch.zeros(scale.images.shape[1:])
    padded[:height, :width] = torch.from_numpy(template)
    spectrum = torch.fft.rfft2(padded).conj() * scale.spectra
    products = torch.fft.irfft2(spectrum, scale.images.shape[1:])[:, :rows, :columns]
    if template.shape not in scale.norms:
        scale.norms[template.shape] = _window_norms(scale, height, width)
    correlations = products / (scale.norms[template.shape] * norm)
    position = int(correlations.argmax())
    number, place = divmod(position, rows * columns)
    top, left = divmod(place, columns)
    pixel = scale.edge / _COARSE_EDGE
    return _Place(float(correlations.flatten()[position]), number, symmetry, scale.edge, top * pixel, left * pixel)


def _window_norms(scale: _Scale, height: int, width: int) -> torch.Tensor:
    def window_sums(values: torch.Tensor) -> torch.Tensor:
        sums = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
        return (
            sums[:, height:, width:]
            - sums[:, :-height, width:]
            - sums[:, height:, :-width]
            + sums[:, :-height, :-width]
        )

    variances = window_sums(scale.images**2) - window_sums(scale.images) ** 2 / (height * width)
    norms = variances.clamp_min(1e-6).sqrt().float()
    for number, (tall, wide) in enumerate(scale.sizes):
        norms[number, max(tall - height + 1, 0) :] = math.inf
        norms[number, :, max(wide - width + 1, 0) :] = math.inf
    return norms


def _standardise(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    centred = image.astype(np.float32) - image.mean(dtype=np.float32)
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 1e-3 else np.zeros_like(centred)

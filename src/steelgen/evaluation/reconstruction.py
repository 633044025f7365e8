"""What an autoencoder keeps of images and masks: the limit of everything that is generated with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from steelgen.data.thin import find_lines

THIN_WIDTH = 3
"""Largest width of thin parts, px."""
_OCTAVE = (0.25, 0.5)
"""The finest octave of an image, cycles per px."""


class ClassRecall(NamedTuple):
    """Shares of a class's pixels that have it in the reconstruction, too; NaN without pixels."""

    name: str
    pixels: int
    recall: float
    thin_pixels: int
    """Pixels of parts at most `THIN_WIDTH` px wide, such as films; see `steelgen.data.thin.find_lines`."""
    thin_recall: float


def compute_codec_recall(
    masks: NDArray[np.uint8], reconstructed: NDArray[np.uint8], class_names: Sequence[str]
) -> list[ClassRecall]:
    """Computes the recall of each class, and of its thin parts, in reconstructed masks.

    Args:
        masks: (N, H, W) class indices; indices of no class are ignored pixels.
        reconstructed: (N, H, W) class indices.
        class_names: of the C classes.
    """
    found = []
    for index, name in enumerate(class_names):
        own = masks == index
        thin = np.stack([find_lines(mask, THIN_WIDTH) for mask in own]) & own
        kept = [_divide((reconstructed[part] == index).sum(), part.sum()) for part in (own, thin)]
        found.append(ClassRecall(name, int(own.sum()), kept[0], int(thin.sum()), kept[1]))
    return found


def compute_psnr(images: NDArray[np.uint8], reconstructed: NDArray[np.uint8]) -> float:
    """Computes the peak signal-to-noise ratio of all images (N, ...) together, in dB."""
    error = np.mean((images.astype(np.float64) - reconstructed) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def compute_kept_detail(images: NDArray[np.uint8], reconstructed: NDArray[np.uint8]) -> float:
    """Computes the power in the finest octave of the spectrum, 0.25 to 0.5 cycles per px, relative to the images'.

    1 keeps all, 0 is blurred; above 1 texture is added. Spectra are of Hann-windowed gray levels without their mean.

    Args:
        images, reconstructed: (N, H, W) or (N, H, W, 3).

    Returns:
        The ratio; NaN if the images have no power there.
    """
    return _divide(_sum_octave(reconstructed), _sum_octave(images))


def _sum_octave(images: NDArray[np.uint8]) -> float:
    height, width = images.shape[1:3]
    frequency = np.hypot(scipy.fft.fftfreq(height)[:, None], scipy.fft.rfftfreq(width))
    octave = (frequency >= _OCTAVE[0]) & (frequency < _OCTAVE[1])
    window = np.outer(np.hanning(height), np.hanning(width))
    planes = np.moveaxis(images[..., None] if images.ndim == 3 else images, -1, 1).astype(np.float64)
    spectra = scipy.fft.rfft2((planes - planes.mean(axis=(2, 3), keepdims=True)) * window)
    return float((np.abs(spectra[..., octave]) ** 2).sum())


def _divide(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan

"""Gray-level histograms and power spectra, which network features may miss."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from steelgen.data.images import to_channels


def compute_histograms(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels at each of the 256 gray levels; RGB is converted to gray (ITU-R 601 luma).

    Args:
        images: (N, S, S) or (N, S, S, 3) uint8.

    Returns:
        (N, 256) counts; the sum over images is the histogram of the set.
    """
    return np.stack([np.bincount(image.ravel(), minlength=256) for image in _to_gray(images)])


def compute_gray_kl(real: NDArray, generated: NDArray) -> NDArray[np.float64]:
    """Kullback-Leibler divergence D(real ‖ generated) of gray-level histograms, (..., 256) counts, in nats.

    Half a count is added to each level (Jeffreys' prior), so that a level missing from one set does not make it
    infinite.
    """
    p, q = real + 0.5, generated + 0.5
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return (p * np.log(p / q)).sum(axis=-1)


def compute_gray_wasserstein(real: NDArray, generated: NDArray) -> NDArray[np.float64]:
    """Wasserstein-1 distance of gray-level histograms, (..., 256) counts, in gray levels (0-255)."""
    p, q = real / real.sum(axis=-1, keepdims=True), generated / generated.sum(axis=-1, keepdims=True)
    return np.abs(np.cumsum(p - q, axis=-1)).sum(axis=-1)


def compute_power_spectra(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Radially averaged power spectrum of each image.

    The mean is subtracted and a Hann window applied; without it the jump between opposite borders leaks into all
    frequencies.

    Args:
        images: (N, S, S) or (N, S, S, 3) uint8; RGB is converted to gray.

    Returns:
        (N, S // 2) mean power at 1, 2 … S // 2 cycles per image; the mean over images is the spectrum of the set.
    """
    gray = _to_gray(images)
    size = gray.shape[1]
    window = np.outer(np.hanning(size), np.hanning(size))
    across = np.arange(size // 2 + 1)
    ring = np.rint(np.hypot(np.fft.fftfreq(size, 1 / size)[:, None], across[None, :])).astype(np.int64).ravel()
    # The other half-plane is the same: every column counts twice but the first and, for an even size, the last.
    twice = np.where((across == 0) | (2 * across == size), 1.0, 2.0)
    counts = np.bincount(ring, np.tile(twice, size))
    spectra = []
    for image in gray:
        power = np.abs(scipy.fft.rfft2((image - image.mean()) * window)) ** 2 * twice
        spectra.append(np.bincount(ring, power.ravel()) / counts / (window**2).sum())
    return np.stack(spectra)[:, 1 : size // 2 + 1]


def compute_spectrum_distance(real: NDArray[np.float64], generated: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square difference of log₁₀ power spectra, (..., F) from `compute_power_spectra`, in decades."""
    # A thousandth of a squared gray level is below the power of any image that is not constant.
    difference = np.log10(np.maximum(real, 1e-3)) - np.log10(np.maximum(generated, 1e-3))
    return np.sqrt((difference**2).mean(axis=-1))


def _to_gray(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, S, S) or (N, S, S, 3) uint8 → (N, S, S) uint8."""
    return images if images.ndim == 3 else np.stack([to_channels(image, 1) for image in images])

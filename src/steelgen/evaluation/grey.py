"""Grey levels and their frequencies: what a network's features may overlook."""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steelgen.data.images import to_channels


def compute_histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels at each of the 256 grey levels over a set; RGB is turned grey (ITU-R 601 luma).

    Args:
        images: (N, S, S) or (N, S, S, 3) uint8.

    Returns:
        (256,) counts.
    """
    return np.bincount(turn_grey(images).ravel(), minlength=256)


def compute_grey_kl(real: NDArray[np.int64], generated: NDArray[np.int64]) -> float:
    """Kullback-Leibler divergence D(real ‖ generated) of two grey-level histograms, in nats.

    Half a count is added to each level (Jeffreys' prior), so that a level that one set lacks does not make
    it infinite.

    Args:
        real: (256,) counts.
        generated: (256,) counts.
    """
    p, q = real + 0.5, generated + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def compute_grey_wasserstein(real: NDArray[np.int64], generated: NDArray[np.int64]) -> float:
    """Wasserstein-1 distance of two grey-level histograms, in grey levels (0-255)."""
    levels = np.arange(256)
    return float(scipy.stats.wasserstein_distance(levels, levels, real, generated))


def compute_power_spectrum(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Radially averaged power spectrum, averaged over a set of images.

    Each image loses its mean and is tapered by a Hann window, without which the jump from one edge to the
    opposite one fills all frequencies.

    Args:
        images: (N, S, S) or (N, S, S, 3) uint8; RGB is turned grey.

    Returns:
        (S // 2,) mean power at 1, 2 … S // 2 cycles an image.
    """
    grey = turn_grey(images)
    size = grey.shape[1]
    window = np.outer(np.hanning(size), np.hanning(size))
    frequency = np.fft.fftfreq(size, 1 / size)
    ring = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(np.int64)
    total = np.zeros((size, size))
    for image in grey:
        total += np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    counts = np.bincount(ring.ravel())
    power = np.bincount(ring.ravel(), total.ravel()) / counts / len(grey) / (window**2).sum()
    return power[1 : size // 2 + 1]


def compute_spectrum_distance(real: NDArray[np.float64], generated: NDArray[np.float64]) -> float:
    """Root mean square difference of two power spectra on a logarithmic scale, in decades.

    Args:
        real: (F,) from `compute_power_spectrum`.
        generated: (F,).
    """
    # Power below a thousandth of a squared grey level is that of a constant image.
    difference = np.log10(np.maximum(real, 1e-3)) - np.log10(np.maximum(generated, 1e-3))
    return float(np.sqrt((difference**2).mean()))


def turn_grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, S, S) or (N, S, S, 3) uint8 → (N, S, S) uint8."""
    return images if images.ndim == 3 else np.stack([to_channels(image, 1) for image in images])

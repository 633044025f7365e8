"""Distances between two sets of images, by features, gray-level histograms and power spectra."""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.linalg
import scipy.spatial.distance
from numpy.typing import NDArray

from steelgen.data.images import to_channels

VARIATION = ("mean gray level", "contrast", "gradient")
"""The values of `compute_variation`."""


def compute_frechet_distance(first: NDArray, second: NDArray) -> float:
    """Fréchet distance between Gaussians fitted to (N, D) and (M, D) features; N, M ≥ 2.

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½, Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The last trace is the
    nuclear norm of A Bᵀ, with A and B the centered features over √(N-1): it is exact for singular covariances and needs
    no matrix square root.

    Returns:
        The distance, ≥ 0, in squared units of the features; biased upward by about 1/N.
    """
    a, b = _centered_factor(first), _centered_factor(second)
    difference = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    trace_of_root = scipy.linalg.svdvals(a @ b.T, check_finite=False).sum()
    return max(0.0, float(difference @ difference + (a**2).sum() + (b**2).sum() - 2 * trace_of_root))


def compute_frechet_error(first: NDArray, second: NDArray) -> float:
    """Standard error of `compute_frechet_distance` by the infinitesimal jackknife (Efron 1982, ch. 6).

    The first variation of the distance by an image x is 2 (μ₁-μ₂)·x + x·x - x·T x, with x centered and T the optimal
    transport between the two Gaussians; with A Bᵀ = U S Vᵀ, A T Aᵀ = U S Uᵀ. The error does not include the bias, which
    the floor shares.
    """
    difference = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    u, singular, vt = scipy.linalg.svd(
        _centered_factor(first) @ _centered_factor(second).T, full_matrices=False, check_finite=False
    )
    variance = 0.0
    for features, vectors, sign in ((first, u, 1), (second, vt.T, -1)):
        centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
        if len(vectors) < len(centered):
            # The factor was the triangle of a QR decomposition; multiply by Q for one row per image.
            vectors = scipy.linalg.qr(centered, mode="economic", check_finite=False)[0] @ vectors
        influence = 2 * sign * centered @ difference + (centered**2).sum(axis=1)
        influence -= (len(centered) - 1) * (vectors**2 * singular).sum(axis=1)
        variance += influence.var() / len(centered)
    return float(np.sqrt(variance))


def compute_kid(
    first: NDArray, second: NDArray, subset_size: int | None = None, num_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """KID of (N, D) and (M, D) features, Bińkowski et al. 2018 (arXiv 1801.01401).

    Unbiased MMD² with the kernel (x·y/D + 1)³.

    Args:
        subset_size: features sampled from each set without replacement; None uses half of the smaller set, at most
            1000.

    Returns:
        Mean and standard deviation over the subsets. The mean can be slightly negative, since the estimate is unbiased.
    """
    smaller = min(len(first), len(second))
    size = min(1000, max(2, smaller // 2)) if subset_size is None else min(subset_size, smaller)
    # All subsets share the kernel values.
    xx, yy, xy = _cubic_kernel(first, first), _cubic_kernel(second, second), _cubic_kernel(first, second)
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(num_subsets):
        i = rng.choice(len(first), size, replace=False)
        j = rng.choice(len(second), size, replace=False)
        estimates.append(
            _mean_off_diagonal(xx[np.ix_(i, i)]) + _mean_off_diagonal(yy[np.ix_(j, j)]) - 2 * xy[np.ix_(i, j)].mean()
        )
    return float(np.mean(estimates)), float(np.std(estimates))


def compute_kid_error(first: NDArray, second: NDArray) -> float:
    """Standard error of KID of (N, D) and (M, D) features; N, M ≥ 3; jackknife over images (Efron 1982, ch. 3)."""
    across = _cubic_kernel(first, second)
    variance = 0.0
    for kernel, cross in ((_cubic_kernel(first, first), across), (_cubic_kernel(second, second), across.T)):
        count = len(kernel)
        np.fill_diagonal(kernel, 0)
        own = (kernel.sum() - 2 * kernel.sum(axis=1)) / ((count - 1) * (count - 2))
        left_out = own - 2 * (cross.sum() - cross.sum(axis=1)) / ((count - 1) * cross.shape[1])
        variance += (count - 1) * left_out.var()
    return float(np.sqrt(variance))


def compute_mmd(
    first: NDArray, second: NDArray, first_weights: NDArray, second_weights: NDArray
) -> NDArray[np.float64]:
    """Unbiased MMD² with the Gaussian kernel exp(-|x - y|²/2σ²) (Gretton et al. 2012, JMLR 13, 723, eq. 3).

    σ is the median distance within `second`, the real one. Of weighted points no pair of a point with itself counts.

    Args:
        first: (N, D) features.
        second: (M, D) features.
        first_weights: (B, N) how often each point occurs in each of B resamples, as by `resample_weights`.
        second_weights: (B, M) likewise.

    Returns:
        (B,); slightly negative where there is no difference. NaN where fewer than two points are left.
    """
    width = float(np.median(scipy.spatial.distance.pdist(second))) if len(second) > 1 else np.nan
    if not width > 0:
        return np.full(len(first_weights), np.nan)

    def compute_kernel(x: NDArray, y: NDArray) -> NDArray[np.float64]:
        return np.exp(scipy.spatial.distance.cdist(x, y, "sqeuclidean") / (-2 * width**2))

    def compute_own(points: NDArray, weights: NDArray) -> NDArray[np.float64]:
        sums, squares = weights.sum(axis=1), (weights**2).sum(axis=1)
        inner = np.einsum("bi,bi->b", weights @ compute_kernel(points, points), weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (inner - squares) / (sums**2 - squares)

    across = np.einsum("bi,bi->b", first_weights @ compute_kernel(first, second), second_weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        across = across / (first_weights.sum(axis=1) * second_weights.sum(axis=1))
    return compute_own(first, first_weights) + compute_own(second, second_weights) - 2 * across


def compute_precision_recall(real: NDArray, generated: NDArray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall, Kynkäänniemi et al. 2019 (arXiv 1904.06991), eqs. 1-3.

    The manifold of a set is the union of balls around its features, each with the k-th nearest neighbor on its surface.

    Args:
        real: (N, D) features, N > k.
        generated: (M, D) features, M > k.

    Returns:
        Share of generated features within the real manifold; share of real features within the generated manifold.
    """
    across = scipy.spatial.distance.cdist(real, generated)
    real_radii = np.partition(scipy.spatial.distance.cdist(real, real), k, axis=1)[:, k]
    generated_radii = np.partition(scipy.spatial.distance.cdist(generated, generated), k, axis=1)[:, k]
    precision = (across <= real_radii[:, None]).any(axis=0).mean()
    recall = (across <= generated_radii[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


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


def compute_variation(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean gray level, contrast (standard deviation) and mean gradient of each image, in gray levels.

    Args:
        images: (N, S, S) or (N, S, S, 3) uint8; RGB is converted to gray.

    Returns:
        (N, 3, 3): powers 0 to 2 of each of the three values, so that sums over images have all that
        `compute_spread_ratios` needs.
    """
    gray = _to_gray(images).astype(np.float64)
    gradient = np.hypot(*(np.diff(gray, axis=axis)[:, : gray.shape[1] - 1, : gray.shape[2] - 1] for axis in (1, 2)))
    values = np.stack([gray.mean((1, 2)), gray.std((1, 2)), gradient.mean((1, 2))], axis=1)
    return values[..., None] ** np.arange(3)


def compute_spread_ratios(real: NDArray[np.float64], generated: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread over generated images relative to that over real ones; below 1, the generated are too much alike.

    Args:
        real, generated: (..., 3) sums or means of the powers 0 to 2 of one value of each image.

    Returns:
        (...) ratios of standard deviations; NaN where the real images are all alike.
    """

    def compute_spread(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        count, total, squares = np.moveaxis(sums, -1, 0)
        return np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))

    spread = compute_spread(real)
    return np.divide(compute_spread(generated), spread, out=np.full_like(spread, np.nan), where=spread > 0)


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


def _centered_factor(features: NDArray) -> NDArray[np.float64]:
    """A factor A (≤D, D) with AᵀA the sample covariance."""
    centered = features.astype(np.float64)
    centered -= centered.mean(axis=0)
    centered /= np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centered
    return scipy.linalg.qr(centered, mode="r", check_finite=False)[0][: features.shape[1]]


def _cubic_kernel(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: NDArray[np.float64]) -> float:
    size = len(kernel)
    return float(kernel.sum() - np.trace(kernel)) / (size * (size - 1))


def _to_gray(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, S, S) or (N, S, S, 3) uint8 → (N, S, S) uint8."""
    return images if images.ndim == 3 else np.stack([to_channels(image, 1) for image in images])

"""How far a set of generated images is from a set of real ones, on feature vectors."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.spatial.distance
from numpy.typing import NDArray


def compute_frechet_distance(first: NDArray, second: NDArray) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features.

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½, Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The last trace
    is the nuclear norm of A Bᵀ, with A and B the centered features over √(N-1): exact also where the
    covariances are singular, and in need of no matrix square root.

    Args:
        first: (N, D) features, N ≥ 2.
        second: (M, D) features, M ≥ 2.

    Returns:
        The distance, ≥ 0, in squared units of the features. Biased upwards by about 1/N.
    """
    a, b = _centered_factor(first), _centered_factor(second)
    difference = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    trace_of_root = scipy.linalg.svdvals(a @ b.T, check_finite=False).sum()
    return max(0.0, float(difference @ difference + (a**2).sum() + (b**2).sum() - 2 * trace_of_root))


def compute_frechet_error(first: NDArray, second: NDArray) -> float:
    """Standard error of `compute_frechet_distance` by the infinitesimal jackknife (Efron 1982, ch. 6).

    One image x adds to the distance's first variation 2 (μ₁-μ₂)·x + x·x - x·T x, x centered and T the optimal
    transport between the two Gaussians; with A Bᵀ = U S Vᵀ, A T Aᵀ = U S Uᵀ. It says how the distance scatters at
    this number of images, and nothing of the bias, which the floor has too.

    Args:
        first: (N, D) features, N ≥ 2.
        second: (M, D) features, M ≥ 2.
    """
    difference = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    u, singular, vt = scipy.linalg.svd(
        _centered_factor(first) @ _centered_factor(second).T, full_matrices=False, check_finite=False
    )
    variance = 0.0
    for features, vectors, sign in ((first, u, 1), (second, vt.T, -1)):
        centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
        if len(vectors) < len(centered):
            # The factor was the triangle of a QR decomposition: back to one row an image.
            vectors = scipy.linalg.qr(centered, mode="economic", check_finite=False)[0] @ vectors
        influence = 2 * sign * centered @ difference + (centered**2).sum(axis=1)
        influence -= (len(centered) - 1) * (vectors**2 * singular).sum(axis=1)
        variance += influence.var() / len(centered)
    return float(np.sqrt(variance))


def compute_kid(
    first: NDArray, second: NDArray, subset_size: int | None = None, num_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """KID: unbiased MMD² with the kernel (x·y/D + 1)³, Bińkowski et al. 2018 (arXiv 1801.01401).

    Args:
        first: (N, D) features.
        second: (M, D) features.
        subset_size: features drawn from each set without replacement; None takes half of the smaller set, at
            most 1000.
        num_subsets: number of draws.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the draws. The mean can be slightly negative: the estimate is
        unbiased.
    """
    smaller = min(len(first), len(second))
    size = min(1000, max(2, smaller // 2)) if subset_size is None else min(subset_size, smaller)
    # Every draw needs the same kernel values: they are computed once.
    xx, yy, xy = _cubic_kernel(first, first), _cubic_kernel(second, second), _cubic_kernel(first, second)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_subsets):
        i = rng.choice(len(first), size, replace=False)
        j = rng.choice(len(second), size, replace=False)
        draws.append(
            _mean_off_diagonal(xx[np.ix_(i, i)]) + _mean_off_diagonal(yy[np.ix_(j, j)]) - 2 * xy[np.ix_(i, j)].mean()
        )
    return float(np.mean(draws)), float(np.std(draws))


def compute_kid_error(first: NDArray, second: NDArray) -> float:
    """Standard error of KID by the jackknife: each image of either set is left out once (Efron 1982, ch. 3).

    Args:
        first: (N, D) features, N ≥ 3.
        second: (M, D) features, M ≥ 3.
    """
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

    A set's manifold is the union of balls around its features that reach to each one's k-th nearest
    neighbor.

    Args:
        real: (N, D) features, N > k.
        generated: (M, D) features, M > k.
        k: which neighbor sets the radius.

    Returns:
        Share of generated features within the real manifold; share of real features within the generated one.
    """
    across = scipy.spatial.distance.cdist(real, generated)
    real_radii = np.partition(scipy.spatial.distance.cdist(real, real), k, axis=1)[:, k]
    generated_radii = np.partition(scipy.spatial.distance.cdist(generated, generated), k, axis=1)[:, k]
    precision = (across <= real_radii[:, None]).any(axis=0).mean()
    recall = (across <= generated_radii[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


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

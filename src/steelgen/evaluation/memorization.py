"""Are generated images copies of training images? What follows from distances, of pixels or of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.intervals import Interval, center_interval, resample_weights

COPY_RATIO = 1 / 3
"""A generated image this much closer to one place than to any other is a copy of it (Yoon et al. 2023; Carlini)."""


def compute_authenticity(to_train: NDArray, own_neighbor: NDArray) -> float:
    """Share of generated images that are farther from their nearest training image than that is from its own.

    Alaa et al. 2022 (arXiv 2102.08921), section 3.3; the share that is closer is 1 minus this.

    Args:
        to_train: (N,) distance of each generated image to its nearest training image.
        own_neighbor: (N,) distance of that training image to its own nearest neighbor in the training set.
    """
    return float((to_train >= own_neighbor).mean())


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
    weights = [resample_weights(len(part), seed, i) for i, part in enumerate((generated_to_train, held_out_to_train))]
    return center_interval(_compute_ct(generated_to_train, held_out_to_train, *weights))


def _compute_ct(
    generated: NDArray, held_out: NDArray, generated_weights: NDArray, held_out_weights: NDArray
) -> NDArray[np.float64]:
    """C_T of B resamples, given how often each of M and N distances occurs in them: (B, M) and (B, N) → (B,)."""
    m, n = len(generated), len(held_out)
    farther = np.heaviside(generated[:, None] - held_out[None, :], 0.5)
    statistic = ((generated_weights @ farther) * held_out_weights).sum(axis=1)
    return (statistic - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12)


def find_nearest(features: NDArray, library: NDArray, skip_self: bool = False) -> tuple[NDArray, NDArray]:
    """Nearest neighbors by Euclidean distance.

    Args:
        features: (N, D), or (N, K, D) with K variants of each image, of which the nearest counts.
        library: (M, D).
        skip_self: features and library are the same; an image is not its own neighbor.

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

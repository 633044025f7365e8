"""Copy and memorization metrics from distances to the training images, in pixels or features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import Interval, center_interval, resample_weights, wilson_interval

COPY_RATIO = 1 / 3
"""Largest ratio of first to second nearest distance of a copy (Yoon et al. 2023; Carlini et al. 2023)."""


def count_copies(kind: str, compared: str, ratios: NDArray, reference: NDArray, seed: int) -> Figure:
    """The share of copies among generated images, or parts or masks of them, and among held-out ones as its floor.

    Args:
        kind: what is copied, before "copies" in the metric's name.
        compared: see `Figure`.
        ratios, reference: (M,) and (N,) first over second nearest distances of generated and of held-out images.
        seed: of the evaluation.
    """
    copied = float((ratios < COPY_RATIO).mean())
    return Figure(
        section="memorization",
        metric=f"{kind} copies (share with d1/d2 < 1/3)".lstrip(),
        compared=compared,
        value=copied,
        floor=float((reference < COPY_RATIO).mean()),
        n=(len(ratios), len(reference)),
        seed=seed,
        better="lower",
        interval=wilson_interval(copied, len(ratios)),
    )


def compute_authenticity(to_train: NDArray, own_neighbor: NDArray) -> float:
    """Share of generated images that are no closer to their nearest training image than that one is to its own.

    Alaa et al. 2022 (arXiv 2102.08921), section 3.3.

    Args:
        to_train: (N,) distance of each generated image to its nearest training image.
        own_neighbor: (N,) distance of that training image to its nearest neighbor in the training set.
    """
    return float((to_train >= own_neighbor).mean())


def compute_ct(generated_to_train: NDArray, held_out_to_train: NDArray) -> float:
    """C_T of Meehan et al. 2020 (arXiv 2004.05675), eq. 2, with the whole space as one cell.

    The z-score of the Mann-Whitney statistic of (M,) generated and (N,) held-out distances to the training set: below
    -3 generated images are too close (copying), above 3 too far (underfitting). It assumes independent images; crops of
    one micrograph are not, so with few held-out micrographs -4 is a hint and no proof.
    """
    ones = np.ones((1, len(generated_to_train))), np.ones((1, len(held_out_to_train)))
    return float(_compute_ct(generated_to_train, held_out_to_train, *ones)[0])


def bootstrap_ct(generated_to_train: NDArray, held_out_to_train: NDArray, seed: int = 0) -> Interval:
    """95 % bootstrap interval of `compute_ct`; both sets are resampled."""
    weights = [resample_weights(len(part), seed, i) for i, part in enumerate((generated_to_train, held_out_to_train))]
    return center_interval(_compute_ct(generated_to_train, held_out_to_train, *weights))


def _compute_ct(
    generated: NDArray, held_out: NDArray, generated_weights: NDArray, held_out_weights: NDArray
) -> NDArray[np.float64]:
    """(B,) C_T of resamples of (M,) and (N,) distances with weights (B, M) and (B, N)."""
    m, n = len(generated), len(held_out)
    farther = np.heaviside(generated[:, None] - held_out[None, :], 0.5)
    statistic = ((generated_weights @ farther) * held_out_weights).sum(axis=1)
    return (statistic - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12)


def find_nearest(features: NDArray, library: NDArray, skip_self: bool = False) -> tuple[NDArray, NDArray]:
    """Nearest neighbors by Euclidean distance.

    Args:
        features: (N, D), or (N, K, D) with K variants of each image; the nearest variant counts.
        library: (M, D).
        skip_self: features and library are the same set, and an image is not its own neighbor.

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

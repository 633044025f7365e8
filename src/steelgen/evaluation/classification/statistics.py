"""Accuracy, balanced accuracy and average precision of a classification study, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.intervals import resample_weights
from steelgen.evaluation.utility.summaries import PARENT_STREAM, summarize_resampled


def compute_average_precision(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Computes the average precision Σ (R_k - R_{k-1}) P_k over all thresholds (Zhu 2004; as in scikit-learn).

    Images of equal score share a threshold.

    Args:
        scores: (N,) higher for the positive class.
        labels: (N,) True for the positive class.
        weights: (D, N) how often each image counts in each of D sets; None for one set with each image once.

    Returns:
        (D,), in [0, 1]; NaN for sets without a positive image.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last image of each threshold
    counts = np.ones((1, len(scores))) if weights is None else weights[:, order]
    hits = np.cumsum(counts * labels[order], axis=1)[:, last]
    found = np.cumsum(counts, axis=1)[:, last]
    precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
    gained = np.diff(hits, axis=1, prepend=0) * precision
    return _divide(gained.sum(axis=1), hits[:, -1])


def compute_accuracy(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Computes the share of images whose logit has the right sign; arguments as in `compute_average_precision`."""
    return _divide(weights @ ((scores > 0) == labels), weights.sum(axis=1))


def compute_balanced_accuracy(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Computes the mean of the accuracies on sound and on defective images; NaN for sets without one of the two."""
    sides = [
        compute_accuracy(scores[labels == side], labels[labels == side], weights[:, labels == side])
        for side in (False, True)
    ]
    return np.mean(sides, axis=0)


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


_METRICS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "average_precision": compute_average_precision,
    "accuracy": compute_accuracy,
    "balanced_accuracy": compute_balanced_accuracy,
}
"""The first one decides."""


def summarize_scores(
    scores: Mapping[tuple[str, str], NDArray[np.float64]],
    labels: NDArray[np.bool_],
    parents: Sequence[str],
    counts: Mapping[str, tuple[int, int]],
    num_bootstrap: int,
) -> dict[str, Any]:
    """Computes the metrics of every code, and their differences to the code without generated images.

    Intervals are those of `summarize_resampled`: a resample draws a micrograph with all its images.

    Args:
        scores: (S, N) logits of each seed and test image by code and architecture.
        labels: (N,) True for defective.
        parents: (N,) micrograph of each image.
        counts: number of real defective and of generated images of every code.
        num_bootstrap: resamples per interval.

    Returns:
        See `summarize_resampled`.
    """
    architectures = list(dict.fromkeys(architecture for _, architecture in scores))
    names, members = np.unique(parents, return_inverse=True)
    by_image = resample_weights(len(names), 0, PARENT_STREAM, num_bootstrap)[:, members]
    measured = {
        (code, metric): np.stack(
            [
                np.stack([compute(row, labels, by_image) for row in scores[code, architecture]], axis=1)
                for architecture in architectures
            ],
            axis=1,
        )
        for code in counts
        for metric, compute in _METRICS.items()
    }  # (1 + B, A, S)
    return summarize_resampled(measured, architectures, counts)

"""Accuracy, balanced accuracy and average precision of a classification study, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.figures import to_json
from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.utility.statistics import POOLED, find_baselines

_SEED_STREAM, _PARENT_STREAM = 0, 1
"""Separate streams of resamples: seeds and micrographs are crossed."""


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


DECISIVE = "average_precision"
"""The metric by which steps are selected and codes compared."""
_METRICS: dict[str, Callable[..., NDArray[np.float64]]] = {
    DECISIVE: compute_average_precision,
    "accuracy": compute_accuracy,
    "balanced_accuracy": compute_balanced_accuracy,
}


def summarize_scores(
    scores: Mapping[tuple[str, str], NDArray[np.float64]],
    labels: NDArray[np.bool_],
    parents: Sequence[str],
    counts: Mapping[str, tuple[int, int]],
    num_bootstrap: int,
) -> dict[str, Any]:
    """Computes the metrics of every code, and their differences to the code without generated images.

    Intervals are percentile bootstraps crossed over seeds and test micrographs (the pigeonhole bootstrap; Owen 2007,
    doi 10.1214/07-AOAS122): each resample draws both independently, a micrograph with all its images, the same for all
    codes and architectures. Architectures are fixed effects.

    Args:
        scores: (S, N) logits of each seed and test image by code and architecture.
        labels: (N,) True for defective.
        parents: (N,) micrograph of each image.
        counts: number of real defective and of generated images of every code.
        num_bootstrap: resamples per interval.

    Returns:
        JSON values: `scores`, one row per code and architecture, and `differences`, one per code with generated images
        and architecture, both with pooled rows. `interval`, `by_seed` and, of a difference, `difference` are those of
        the average precision; the accuracies and their intervals have fields of their own. An interval is None where
        too many resamples have no defective image.
    """
    architectures = list(dict.fromkeys(architecture for _, architecture in scores))
    num_seeds = len(next(iter(scores.values())))
    names, members = np.unique(parents, return_inverse=True)
    by_seed = resample_weights(num_seeds, 0, _SEED_STREAM, num_bootstrap)
    by_image = resample_weights(len(names), 0, _PARENT_STREAM, num_bootstrap)[:, members]
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

    def describe(values: Mapping[str, NDArray[np.float64]], lowest: float, decisive: str) -> list[dict[str, Any]]:
        pools = [(name, [index]) for index, name in enumerate(architectures)]
        if len(architectures) > 1:
            pools.append((POOLED, list(range(len(architectures)))))
        rows = []
        for name, chosen in pools:
            row: dict[str, Any] = {"architecture": name}
            for metric in _METRICS:
                pooled = values[metric][:, chosen].mean(axis=1)  # (1 + B, S)
                over_seeds = (by_seed * pooled).sum(axis=1) / num_seeds
                fields = metric, f"{metric}_interval"
                if metric == DECISIVE:
                    fields = decisive, "interval"
                    row["by_seed"] = pooled[0]
                row.update(zip(fields, (over_seeds[0], _interval(over_seeds, lowest)), strict=True))
            rows.append(row)
        return rows

    found: dict[str, list[dict[str, Any]]] = {"scores": [], "differences": []}
    for code, (num_real, num_generated) in counts.items():
        start = {"code": code, "num_real": num_real, "num_generated": num_generated}
        own = {metric: measured[code, metric] for metric in _METRICS}
        found["scores"] += [{**start, **row} for row in describe(own, 0.0, DECISIVE)]
        for baseline in find_baselines(code, counts):
            gained = {metric: own[metric] - measured[baseline, metric] for metric in _METRICS}
            rows = describe(gained, -1.0, "difference")
            found["differences"] += [{**start, "baseline": baseline, **row} for row in rows]
    return to_json(found)


def _interval(values: NDArray[np.float64], lowest: float) -> tuple[float, float] | None:
    low, high = center_interval(values, lowest, 1.0)
    return None if np.isnan(low) else (low, high)

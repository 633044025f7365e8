"""COCO's average precision of a study of instances, with 95 % intervals over seeds and test micrographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.instances.matching import Matches
from steelgen.evaluation.intervals import resample_weights
from steelgen.evaluation.utility.summaries import PARENT_STREAM, summarize_resampled

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO reads the precision."""
METRICS = {"ap": ("mask", None), "ap50": ("mask", 0), "small_ap": ("small", None), "boundary_ap": ("boundary", None)}
"""Kind of matches of each metric, and the index of its threshold; None averages over all. The first one decides."""


def compute_average_precision(matches: Matches, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Computes COCO's average precision of one class at each IoU threshold (Lin et al. 2014, arXiv 1405.0312).

    This is the mean over 101 recalls of the highest precision at that recall or above, 0 where it is not reached, as in
    accumulate of pycocotools.

    Args:
        matches: T thresholds, D predicted instances, N tiles.
        weights: (B, N) how often each tile counts in each of B sets; None for one set with each tile once.

    Returns:
        (B, T), in [0, 1]; NaN for sets without a true instance.
    """
    order = np.argsort(-matches.scores, kind="stable")
    counts = np.ones((1, len(matches.num_true))) if weights is None else weights
    # Sets that drew the same tiles are alike.
    unlike, places = np.unique(counts, axis=0, return_inverse=True)
    seen, num_true = unlike[:, matches.tiles[order]], unlike @ matches.num_true
    values = np.full((len(unlike), len(matches.matched)), np.nan)
    for row, (matched, ignored) in enumerate(zip(matches.matched[:, order], matches.ignored[:, order], strict=True)):
        hits = np.cumsum(seen * (matched & ~ignored), axis=1)
        found = hits + np.cumsum(seen * (~matched & ~ignored), axis=1)
        precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
        # The highest precision at this recall or above; 0 beyond the last.
        highest = np.maximum.accumulate(np.pad(precision, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1]
        for index in np.flatnonzero(num_true):
            first = np.searchsorted(hits[index] / num_true[index], RECALLS)
            values[index, row] = highest[index, first].mean()
    return values[places.ravel()]


def compute_metrics(
    matches: Mapping[str, Sequence[Matches]], weights: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Computes each of `METRICS`, (B,): the mean over the classes with true instances; NaN if there are none.

    Args:
        matches: from `match_tiles`.
        weights: see `compute_average_precision`.
    """
    kinds = {
        kind: np.stack([compute_average_precision(part, weights) for part in classes], axis=1)
        for kind, classes in matches.items()
    }  # (B, classes, T)
    measured = {}
    for metric, (kind, threshold) in METRICS.items():
        values = kinds[kind] if threshold is None else kinds[kind][:, :, [threshold]]
        by_class = values.mean(axis=2)
        known = np.isfinite(by_class)
        total, count = np.where(known, by_class, 0).sum(axis=1), known.sum(axis=1)
        measured[metric] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return measured


def summarize_matches(
    matches: Mapping[tuple[str, str], Sequence[Mapping[str, Sequence[Matches]]]],
    micrographs: Sequence[int],
    counts: Mapping[str, tuple[int, int]],
    num_bootstrap: int,
) -> dict[str, Any]:
    """Computes the metrics of every code, and their differences to the codes of `find_baselines`.

    Intervals are those of `summarize_resampled`: a resample draws a micrograph with all its tiles.

    Args:
        matches: those of `match_tiles` of each seed, by code and architecture.
        micrographs: (N,) micrograph of each tile.
        counts: number of real micrographs and of generated pairs of every code.
        num_bootstrap: resamples per interval.

    Returns:
        See `summarize_resampled`.
    """
    names, members = np.unique(micrographs, return_inverse=True)
    weights = resample_weights(len(names), 0, PARENT_STREAM, num_bootstrap)[:, members]
    architectures = list(dict.fromkeys(architecture for _, architecture in matches))
    computed = {key: [compute_metrics(each, weights) for each in seeds] for key, seeds in matches.items()}
    measured = {
        (code, metric): np.stack(
            [np.stack([each[metric] for each in computed[code, name]], axis=1) for name in architectures], axis=1
        )
        for code in counts
        for metric in METRICS
    }  # (1 + B, A, S)
    return summarize_resampled(measured, architectures, counts)

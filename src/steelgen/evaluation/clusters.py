"""Clusters of islands and their shares by condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.cluster.vq
import scipy.special
from numpy.typing import NDArray

from steelgen.errors import InputError
from steelgen.evaluation.intervals import Interval, wilson_interval

_ATTEMPTS = 10


@dataclass(frozen=True)
class Clusters:
    """A partition of N points; cluster 0 is the largest."""

    labels: NDArray[np.int64]
    """(N,) the cluster of each point."""
    centers: NDArray[np.float64]
    """(K, D) in the units of the points."""
    distances: NDArray[np.float64]
    """(N,) distance of each point from its cluster's center, in standard deviations of the points."""

    def list_typical(self, cluster: int, count: int) -> NDArray[np.int64]:
        """Returns up to `count` points of a cluster, nearest to its center first."""
        own = np.flatnonzero(self.labels == cluster)
        return own[np.argsort(self.distances[own], kind="stable")[:count]]


def find_clusters(points: NDArray[Any], count: int, seed: int = 0) -> Clusters:
    """Runs k-means with k-means++ initialization (Arthur & Vassilvitskii 2007) on standardized dimensions.

    Args:
        points: (N, D).
        count: K.
        seed: seed of the initializations; the best of 10 is kept.

    Raises:
        InputError: if there are fewer distinct points than clusters.
    """
    distinct = len(np.unique(points, axis=0))
    if distinct < count:
        raise InputError(f"clusters {count}: there are only {distinct} distinct islands; use fewer clusters")
    values = points.astype(np.float64)
    deviations = np.maximum(values.std(axis=0), 1e-12)
    scaled = values / deviations
    best: tuple[float, NDArray, NDArray] | None = None
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        try:
            centers, labels = scipy.cluster.vq.kmeans2(scaled, count, minit="++", seed=rng, missing="raise")
        except scipy.cluster.vq.ClusterError:  # a cluster that lost all its points
            continue
        spread = float(((scaled - centers[labels]) ** 2).sum())
        if best is None or spread < best[0]:
            best = spread, centers, labels
    if best is None:
        raise InputError(f"clusters {count}: islands form fewer groups; use fewer clusters")
    _, centers, labels = best
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    ranks = np.argsort(order)
    distances = np.linalg.norm(scaled - centers[labels], axis=1)
    return Clusters(ranks[labels].astype(np.int64), centers[order] * deviations, distances)


def compute_occupancy(
    labels: NDArray[np.int64], conditions: Sequence[Any], count: int
) -> dict[Any, list[tuple[float, Interval]]]:
    """Computes each cluster's share of the islands by condition, with 95 % intervals (see `wilson_interval`).

    Args:
        labels: (N,) clusters.
        conditions: (N,) sortable values.
        count: number of clusters.
    """
    occupancy = {}
    for condition in sorted(set(conditions)):
        own = labels[[value == condition for value in conditions]]
        shares = np.bincount(own, minlength=count) / len(own)
        occupancy[condition] = [(float(share), wilson_interval(float(share), len(own))) for share in shares]
    return occupancy


def compute_adjusted_rand(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Computes the adjusted Rand index of two partitions: 1 for identical ones, 0 on average for random ones.

    Source: Hubert & Arabie 1985, J. Classification 2, 193, eq. 5.
    """
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    pairs = scipy.special.comb(table, 2).sum()
    by_row, by_column = (scipy.special.comb(table.sum(axis=axis), 2).sum() for axis in (1, 0))
    expected = by_row * by_column / scipy.special.comb(len(rows), 2)
    largest = (by_row + by_column) / 2
    return 1.0 if largest == expected else float((pairs - expected) / (largest - expected))

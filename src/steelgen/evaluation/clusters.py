"""Groups of islands that are alike, and how often each occurs under which condition."""

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
    """(N,) of each point from the center of its cluster, in standard deviations of the points."""

    def list_typical(self, cluster: int, count: int) -> NDArray[np.int64]:
        """Up to `count` points of a cluster, the nearest to its center first."""
        own = np.flatnonzero(self.labels == cluster)
        return own[np.argsort(self.distances[own], kind="stable")[:count]]


def find_clusters(points: NDArray[Any], count: int, seed: int = 0) -> Clusters:
    """k-means with k-means++ starts (Arthur & Vassilvitskii 2007), each dimension in its standard deviations.

    Args:
        points: (N, D).
        count: K.
        seed: of the starts; the best of 10 is taken.

    Raises:
        InputError: if there are fewer points than clusters.
    """
    different = len(np.unique(points, axis=0))
    if different < count:
        raise InputError(f"clusters {count}: there are only {different} different islands; name fewer")
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
        raise InputError(f"clusters {count}: islands fall into fewer groups; name fewer")
    _, centers, labels = best
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    ranks = np.argsort(order)
    distances = np.linalg.norm(scaled - centers[labels], axis=1)
    return Clusters(ranks[labels].astype(np.int64), centers[order] * deviations, distances)


def compute_occupancy(
    labels: NDArray[np.int64], conditions: Sequence[Any], count: int
) -> dict[Any, list[tuple[float, Interval]]]:
    """By condition, the share of its islands in each cluster with its 95 % interval (see `wilson_interval`).

    Args:
        labels: (N,) clusters.
        conditions: (N,) values, all of which can be sorted.
        count: clusters.
    """
    found = {}
    for condition in sorted(set(conditions)):
        own = labels[[value == condition for value in conditions]]
        shares = np.bincount(own, minlength=count) / len(own)
        found[condition] = [(float(share), wilson_interval(float(share), len(own))) for share in shares]
    return found


def compute_adjusted_rand(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Agreement of two partitions of the same points: 1 where they are the same, 0 on average by chance.

    Hubert & Arabie 1985, J. Classification 2, 193, eq. 5.
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

"""How bright micrographs are, by the phases that they show and from one micrograph to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.data.cache import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.files import Record

_QUANTILES = 33
_RIDGE = 0.1
"""(Deviation within phases / deviation between phases)², in tiles, which steadies the levels of rare classes."""
_MAX_MICROGRAPHS = 500
"""Micrographs measured of a dataset; of larger ones, evenly spaced ones."""


class Brightness(Record):
    """Distribution of the mean gray level of images, in [-1, 1]: Σ p_c·level_c + u + w for area fractions p of the
    classes, with u alike in all of a micrograph and w different at each place."""

    classes: list[int]
    """Indices of the classes; empty for images without classes."""
    levels: list[float] = Field(min_length=1)
    """Mean gray level of each class, or of everything; beyond black or white for some that are never seen alone."""
    between: list[float] = Field(min_length=1)
    """n quantiles of u, in the middle of n equal parts of the distribution, ascending."""
    within: float = Field(ge=0)
    """Standard deviation of w over places of the size of a crop."""

    def sample(
        self, fractions: NDArray[np.float64], normal: NDArray[np.float64], crops: float = 1.0
    ) -> NDArray[np.float64]:
        """Returns mean gray levels (N,) of images.

        Args:
            fractions: (N, levels), rows with sum 1.
            normal: (N, 2) standard normal numbers, for u and w.
            crops: area of the images in crops, at least 1; w is independent from crop to crop.
        """
        count = len(self.between)
        ranks = [NormalDist().cdf(value) for value in normal[:, 0]]
        between = np.interp(ranks, (np.arange(count) + 0.5) / count, self.between)
        levels = fractions @ np.array(self.levels) + between + self.within / math.sqrt(crops) * normal[:, 1]
        return levels.clip(-1, 1)  # pure phases may never have been seen


def sample_levels(
    groups: Sequence[Brightness], areas: NDArray[np.float64], normal: NDArray[np.float64], crops: float = 1.0
) -> NDArray[np.float64]:
    """Returns mean gray levels (N,) of images, by the group of classes with the largest area; NaN without a class.

    Args:
        areas: (N, classes), area of each class.
        normal, crops: see `Brightness.sample`.
    """
    owned = [areas[:, group.classes] if group.classes else np.ones((len(areas), 1)) for group in groups]
    totals = np.stack([own.sum(axis=1) for own in owned], axis=1)
    levels = np.full(len(areas), np.nan)
    for index, (group, own) in enumerate(zip(groups, owned, strict=True)):
        rows = (totals.argmax(axis=1) == index) & (totals[:, index] > 0)
        levels[rows] = group.sample(own[rows] / totals[rows, index, None], normal[rows], crops)
    return levels


def measure_brightness(micrographs: Micrographs, geometry: CropGeometry) -> tuple[Brightness, ...]:
    """Measures tiles of the size of crops, side by side in each micrograph, by ridge regression on area fractions.

    Pixels of no class are left out of the fractions, and tiles without a class are left out if there are classes. The
    datasets of a mixture count by their share of the crops; those that have no class in common have each their own.
    """
    members = np.array(micrographs.members or [0] * len(micrographs))
    chances = micrographs.weigh(micrographs.members) if micrographs.shares else np.ones(len(micrographs))
    chosen = [index for member in np.unique(members) for index in _spread(np.flatnonzero(members == member)).tolist()]
    count = micrographs.info.num_classes
    tiles, shown = {}, {member: set[int]() for member in members}
    for index in chosen:
        edge = micrographs.fit_geometry(index, geometry).crop_size
        found = _measure_tiles(micrographs.images[index], micrographs.masks[index], edge, count)
        if len(found):
            tiles[index] = found[:, :-1], found[:, -1]
            # A single dataset has all classes, those that are nowhere, too.
            seen = np.flatnonzero(found[:, :-1].any(axis=0)) if micrographs.shares else np.arange(max(1, count))
            shown[members[index]].update(seen.tolist())
    groups = []
    for columns in _join(filter(None, shown.values())):
        own = {index: (areas[:, columns], grays) for index, (areas, grays) in tiles.items() if areas[:, columns].any()}
        groups.append(_fit(columns if count else [], list(own.values()), chances[list(own)]))
    return tuple(groups)


def _spread(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most _MAX_MICROGRAPHS evenly spaced ones."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), _MAX_MICROGRAPHS)).round().astype(int)
    return indices[places]


def _join(sets: Iterable[set[int]]) -> list[list[int]]:
    """Joins sets that have something in common; sorted."""
    groups: list[set[int]] = []
    for each in sets:
        touching = [group for group in groups if group & each]
        groups = [group for group in groups if not group & each] + [each.union(*touching)]
    return sorted(map(sorted, groups))


def _fit(
    classes: list[int],
    tiles: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    chances: NDArray[np.float64],
) -> Brightness:
    """Fits area fractions (tiles, levels) and gray levels (tiles,) of micrographs, which count by their chances."""
    counts = np.array([len(grays) for _, grays in tiles])
    fractions, grays = (np.concatenate(parts) for parts in zip(*tiles, strict=True))
    weights = np.repeat(chances / counts, counts)
    levels = _fit_levels(fractions, grays, weights * len(weights) / weights.sum())
    rests = np.split(grays - fractions @ levels, np.cumsum(counts)[:-1])
    freedom = float(chances @ (1 - 1 / counts))
    spread = float(chances @ np.array([rest.var() for rest in rests]))
    return Brightness(
        classes=classes,
        levels=levels.tolist(),
        between=_find_quantiles(np.array([rest.mean() for rest in rests]), chances).tolist(),
        within=math.sqrt(spread / freedom) if freedom else 0.0,
    )


def _measure_tiles(image: NDArray[np.uint8], mask: NDArray[np.uint8], edge: int, classes: int) -> NDArray[np.float64]:
    """Area fractions of the classes, or 1, and the mean gray level in [-1, 1] of each tile, (tiles, classes + 1).

    Micrographs smaller than a tile are one.
    """
    height, width = mask.shape
    rows = []
    for top in range(0, max(height - edge, 0) + 1, edge):
        for left in range(0, max(width - edge, 0) + 1, edge):
            place = (slice(top, top + edge), slice(left, left + edge))
            areas = np.bincount(mask[place].ravel(), minlength=256)[:classes] if classes else np.ones(1)
            if areas.any():
                rows.append([*(areas / areas.sum()), image[place].mean() / 127.5 - 1])
    return np.array(rows)


def _fit_levels(
    fractions: NDArray[np.float64], grays: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fits the gray level of each class to tiles (N, classes); a class that is nowhere gets the mean over classes."""
    center, mean = np.average(fractions, axis=0, weights=weights), np.average(grays, weights=weights)
    shifted = (fractions - center) * np.sqrt(weights)[:, None]
    targets = (grays - mean) * np.sqrt(weights)
    slopes = np.linalg.solve(shifted.T @ shifted + _RIDGE * np.eye(len(center)), shifted.T @ targets)
    levels: NDArray[np.float64] = mean + slopes - center @ slopes
    return levels


def _find_quantiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of weighted values in the middle of equal parts; of few values with equal weights, the values."""
    order = np.argsort(values, kind="stable")
    places = np.cumsum(weights[order]) - weights[order] / 2
    count = min(len(values), _QUANTILES)
    return np.interp((np.arange(count) + 0.5) / count, places / weights.sum(), values[order])

"""Layouts that never were: masks drawn from the island statistics of real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from steelgen.config.sample import ProceduralMasks
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry, scale_whole
from steelgen.errors import InputError
from steelgen.sampling.augmented import resolve_shares
from steelgen.sampling.footprints import (
    find_matrix,
    meet_area,
    place_island,
    smooth_noise,
    take_highest,
    trim,
)
from steelgen.sampling.masks import SourceMask, load_source_info
from steelgen.sampling.measured import MIN_ROUGH_AREA, IslandTable, Network, Statistics, measure_masks, pool_tables

_STREAM = 3
"""Keeps the random numbers apart from those of crops."""
_PLACES = 24
"""Random places that are compared for an island."""
_ROUNDS = 8
"""Times that further islands are drawn while the area share is not met."""
_REMAINDER = 0.3
"""Of the mean island: a smaller rest of the area share is spread over the islands that are there."""
_MIN_NETWORK_SHARE = 0.02
"""Of the area: in micrographs with less, films are not measured."""
_LAYOUTS = 12
"""Random grain structures that are compared for a network."""


class ProceduralSource:
    """A `MaskSource` of layouts.

    Each follows one micrograph, chosen at random: the area shares are those of a random place in it, the islands are
    drawn from its sizes, aspect ratios, orientations (all turned by one angle) and spacings.
    """

    def __init__(self, config: ProceduralMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        load_source_info(config.dataset, info)
        micrographs = load_micrographs(config.dataset, config.split)
        # Measured at the scale of the network's images, so that nothing is resized after it was drawn.
        self._masks = [scale_whole(mask, geometry) for mask in micrographs.masks]
        self._stems = micrographs.stems
        matrix = find_matrix(self._masks, info.num_classes)
        self._statistics = measure_masks(self._masks, info.num_classes, matrix)
        self._shares = resolve_shares(config.phase_fraction, info, matrix)
        for label in self._shares.keys() - set(self._statistics.order):
            raise InputError(
                f"mask_source.phase_fraction: the {config.split} split of {config.dataset} holds no "
                f"{info.class_names[label]!r} to be measured"
            )
        self._size, self._seed, self._split = geometry.image_size, seed, config.split

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        rng = np.random.default_rng((self._seed, index, _STREAM))
        number = int(rng.integers(len(self._masks)))
        model = self._masks[number]
        top, left = (int(rng.integers(edge - self._size + 1)) for edge in model.shape)
        window = model[top : top + self._size, left : left + self._size]
        shares = {label: float((window == label).mean()) for label in self._statistics.order} | self._shares
        mask = sample_layout(self._statistics, number, shares, self._size, rng)
        return SourceMask(mask, None, f"layout after {self._split}/masks/{self._stems[number]}")


def sample_layout(
    statistics: Statistics, number: int, shares: dict[int, float], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draws a layout after micrograph `number`.

    Args:
        statistics: see `measure_masks`.
        shares: area share of each class but the matrix, which takes the rest; met to the pixel where there is room.
        size: edge in px.

    Returns:
        (size, size) uint8 class indices; no two islands of one class overlap or touch, unless they had to grow to
        meet the share.
    """
    mask = np.full((size, size), statistics.matrix, np.uint8)
    turn = rng.uniform(0, np.pi)
    for label in statistics.order:
        wanted = round(shares[label] * size * size)
        if wanted == 0:
            continue
        networks = [network[label] for network in statistics.networks if label in network]
        if networks:
            own = statistics.networks[number].get(label)
            if own is None or own.fraction < _MIN_NETWORK_SHARE:
                # What little there is says nothing of the thickness: take it from where there is most.
                own = max(networks, key=lambda network: network.fraction)
            _sample_network(mask, label, statistics.matrix, own, wanted, rng)
        else:
            table = _choose_table(statistics, number, label)
            if len(table):
                _sample_islands(mask, label, statistics.matrix, table, wanted, turn, rng)
        meet_area(mask, label, statistics.matrix, wanted, rng)
    return mask


def sample_footprint(
    area: int, aspect: float, solidity: float, angle: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """An island of exactly `area` pixels: an ellipse, bent and roughened as far as its solidity asks.

    Args:
        area: px.
        aspect: length over width, ≥ 1.
        solidity: area over that of the convex hull, in (0, 1].
        angle: of the long axis, radians from the x axis towards y.
    """
    length, width = np.sqrt(area * aspect / np.pi), np.sqrt(area / aspect / np.pi)
    reach = int(np.ceil(1.6 * length)) + 2
    rough = max(0.0, 0.95 - solidity) if area >= MIN_ROUGH_AREA else 0.0
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] + rng.uniform(-0.5, 0.5, (2, 1, 1))
    u = (x * np.cos(angle) + y * np.sin(angle)) / length
    v = (-x * np.sin(angle) + y * np.cos(angle)) / width
    # What an island lacks in convexity is in a bent and wavy axis and in a width that varies along it.
    v = v + min(4 * rough, 1.5) * rng.choice([-1, 1]) * (u**2 - 0.25) + 3 * rough * _wave(u, rng)
    distance = u**4 + (v / np.exp(1.5 * rough * _wave(u, rng))) ** 2
    return trim(take_highest(-distance, area))


def _wave(u: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A random smooth function of u with an amplitude of about 1."""
    total = np.zeros_like(u)
    for order in (1, 2, 3):
        total += rng.uniform(-1.5, 1.5) / order * np.sin(1.6 * order * u + rng.uniform(0, 2 * np.pi))
    return total


def _choose_table(statistics: Statistics, number: int, label: int) -> IslandTable:
    own = statistics.tables[number].get(label)
    if own is not None and len(own) >= 3:
        return own
    return pool_tables([table[label] for table in statistics.tables])


def _sample_islands(
    mask: NDArray[np.uint8],
    label: int,
    matrix: int,
    table: IslandTable,
    wanted: int,
    turn: float,
    rng: np.random.Generator,
) -> None:
    """Draws islands until the class covers `wanted` pixels, the largest of each round first."""
    size = len(mask)
    others = (mask != matrix) & (mask != label)
    away = distance_transform_edt(~others) if others.any() else None
    # Those that reach further are more often seen, in part or whole.
    reach = size + 2 * np.sqrt(table.area * table.aspect_ratio / np.pi)
    weights = table.weight * reach**2
    weights /= weights.sum()
    centers: list[tuple[float, float]] = []
    mean = float((table.area * weights).sum())
    expected = wanted / mean
    for _ in range(_ROUNDS):
        missing = wanted - int((mask == label).sum())
        if missing <= 0 or (centers and missing < _REMAINDER * mean):
            return
        rows = rng.choice(len(table), size=max(1, int(1.2 * missing / mean) + 1), p=weights)
        # Up to the missing area, but at least one.
        rows = rows[: 1 + int(np.searchsorted(np.cumsum(table.area[rows]), missing))]
        for row in rows[np.argsort(-table.area[rows], kind="stable")]:
            footprint = sample_footprint(
                int(table.area[row]), table.aspect_ratio[row], table.solidity[row], table.angle[row] + turn, rng
            )
            extent = np.array(footprint.shape)
            places = rng.uniform(-extent / 2, size + extent / 2, (_PLACES, 2))
            misfit = _misfit(places, centers, away, table, int(row), size, expected)
            room = wanted - int((mask == label).sum())
            if room <= 0 or (centers and room < _REMAINDER * mean):
                return
            if room < table.area[row]:
                # What the share has no room for lies beyond the border.
                corners = (places - extent / 2).round().astype(int)
                misfit += [
                    3 * abs(_area_inside(footprint, int(top), int(left), size) / room - 1) for top, left in corners
                ]
            for place in places[np.argsort(misfit, kind="stable")]:
                top, left = (place - extent / 2).round().astype(int)
                if place_island(mask, footprint, label, matrix, int(top), int(left)):
                    centers.append((float(place[0]), float(place[1])))
                    break


def _area_inside(footprint: NDArray[np.bool_], top: int, left: int, size: int) -> int:
    return int(footprint[max(-top, 0) : max(size - top, 0), max(-left, 0) : max(size - left, 0)].sum())


def _misfit(
    places: NDArray[np.float64],
    centers: list[tuple[float, float]],
    away: NDArray[np.float64] | None,
    table: IslandTable,
    row: int,
    size: int,
    expected: float,
) -> NDArray[np.float64]:
    """How far each place is from the spacing and the clearance that the island had: |log ratio|, summed.

    While few of the `expected` islands are there, spacings are as much larger as theirs would be, thinned at random.
    """
    misfit = np.zeros(len(places))
    if centers and np.isfinite(table.spacing[row]):
        nearest = np.sqrt(((places[:, None] - np.array(centers)[None]) ** 2).sum(axis=2).min(axis=1))
        thinned = table.spacing[row] * np.sqrt(max(expected / len(centers), 1.0))
        misfit += np.abs(np.log((nearest + 1) / (thinned + 1)))
    if away is not None and np.isfinite(table.clearance[row]):
        rows, columns = places.round().astype(int).clip(0, size - 1).T
        misfit += np.abs(np.log((away[rows, columns] + 1) / (table.clearance[row] + 1)))
    return misfit


def _sample_network(
    mask: NDArray[np.uint8], label: int, matrix: int, network: Network, wanted: int, rng: np.random.Generator
) -> None:
    """Draws films along the boundaries of Voronoi grains, of the network's thickness and as many as its share needs.

    Boundaries of a Poisson-Voronoi tessellation of density λ have a length of 2√λ per area (Okabe et al. 2000, table
    5.5.1), which gives the grain density from share and thickness.
    """
    size = len(mask)
    density = (network.fraction / network.thickness / 2) ** 2
    length = max(4 * network.thickness, 12.0)
    points = np.mgrid[:size, :size].astype(float)
    for axis in range(2):
        points[axis] += network.thickness * smooth_noise((size, size), length, rng)
        points[axis] += 0.1 * network.thickness * smooth_noise((size, size), length / 6, rng)
    # Films are wavy, and of a width that varies along them.
    width = np.exp(0.35 * smooth_noise((size, size), 1.5 * length, rng))
    best: tuple[float, NDArray[np.float64]] | None = None
    for _ in range(_LAYOUTS):
        if wanted < 2 * network.thickness**2:
            # A film that only grazes the border.
            graze = rng.permutation([rng.uniform(0, size), rng.choice([0.0, float(size)])])
            distance = np.hypot(points[0] - graze[0], points[1] - graze[1])
        else:
            seeds = rng.uniform(-size, 2 * size, (max(3, rng.poisson(density * 9 * size * size)), 2))
            distance = _boundary_distance(seeds, points) / width
        misfit = abs(int((distance <= network.thickness / 2).sum()) - wanted)
        if best is None or misfit < best[0]:
            best = misfit, distance
    assert best is not None
    distance = np.where(mask == matrix, best[1], np.inf)
    nearest = np.argsort(distance, axis=None, kind="stable")[:wanted]
    mask.reshape(-1)[nearest[np.isfinite(distance.reshape(-1)[nearest])]] = label
    # Where films only graze the border of their width they leave crumbs; the rest grows by as much.
    crumbs = [island for island in find_islands(mask, label) if island.footprint.sum() < network.thickness**2 / 2]
    if sum(int(island.footprint.sum()) for island in crumbs) < wanted / 2:
        for island in crumbs:
            mask[island.window][island.footprint] = matrix


def _boundary_distance(seeds: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance (H, W) of points (2, H, W) to the plane between the two nearest seeds (N, 2)."""
    distances, nearest = cKDTree(seeds).query(np.moveaxis(points, 0, -1), k=2)
    apart = np.linalg.norm(seeds[nearest[..., 0]] - seeds[nearest[..., 1]], axis=-1)
    return (distances[..., 1] ** 2 - distances[..., 0] ** 2) / (2 * np.maximum(apart, 1e-9))

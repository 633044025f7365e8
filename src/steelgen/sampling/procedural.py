"""Procedural masks: synthetic layouts sampled from the island statistics of real masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from steelgen.config.mask_sources import ProceduralMasks
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import find_islands
from steelgen.data.placement import CropGeometry, scale_whole
from steelgen.errors import InputError
from steelgen.sampling.augmented import resolve_fractions
from steelgen.sampling.footprints import adjust_area, find_matrix, place_island, select_highest, smooth_noise, trim
from steelgen.sampling.island_statistics import (
    MIN_ROUGH_AREA,
    IslandTable,
    Network,
    Statistics,
    measure_masks,
    pool_tables,
)
from steelgen.sampling.masks import SourceMask, load_source

_STREAM = 3
"""Separates the random stream from that of crops."""
_PLACES = 24
"""Random candidate places per island."""
_ROUNDS = 8
"""Maximum rounds of adding islands until the phase fraction is reached."""
_REMAINDER = 0.3
"""Share of the mean island area; a smaller missing area is added by growing the islands present."""
_MIN_NETWORK_SHARE = 0.02
"""Phase fraction below which the thickness of films in a micrograph is not used."""
_LAYOUTS = 12
"""Random candidate grain structures per network."""


class ProceduralSource:
    """Layouts modeled on one random micrograph each.

    The phase fractions are those of a random window; the island sizes, aspect ratios, orientations (all rotated by one
    angle) and spacings are sampled from the micrograph's islands. See `ProceduralMasks`.
    """

    def __init__(self, config: ProceduralMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        micrographs = load_source(config.dataset, config.split, info)
        # Measured at the scale of the generated images, so that layouts need no resizing.
        self._masks = [scale_whole(mask, geometry) for mask in micrographs.masks]
        self._stems = micrographs.stems
        matrix = find_matrix(self._masks, info.num_classes)
        self._statistics = measure_masks(self._masks, info.num_classes, matrix)
        self._fractions = resolve_fractions(config.phase_fraction, info, matrix)
        for label in self._fractions.keys() - set(self._statistics.order):
            raise InputError(
                f"mask_source.phase_fraction: {info.class_names[label]!r} cannot be measured, it does not occur in the "
                f"{config.split} split of {config.dataset}"
            )
        self._size, self._seed, self._split = geometry.image_size, seed, config.split

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        rng = np.random.default_rng((self._seed, index, _STREAM))
        number = int(rng.integers(len(self._masks)))
        model = self._masks[number]
        top, left = (int(rng.integers(edge - self._size + 1)) for edge in model.shape)
        window = model[top : top + self._size, left : left + self._size]
        fractions = {label: float((window == label).mean()) for label in self._statistics.order} | self._fractions
        mask = sample_layout(self._statistics, number, fractions, self._size, rng)
        return SourceMask(mask, None, f"layout after {self._split}/masks/{self._stems[number]}")


def sample_layout(
    statistics: Statistics, number: int, fractions: dict[int, float], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Samples a layout modeled on micrograph `number`.

    Args:
        statistics: see `measure_masks`.
        fractions: phase fraction of each class except the matrix; met to the pixel where there is space.
        size: edge in px.

    Returns:
        (size, size) uint8 class indices; islands of a class overlap or touch only if they had to grow to meet the
        fraction.
    """
    mask = np.full((size, size), statistics.matrix, np.uint8)
    turn = rng.uniform(0, np.pi)
    for label in statistics.order:
        wanted = round(fractions[label] * size * size)
        if wanted == 0:
            continue
        networks = [network[label] for network in statistics.networks if label in network]
        if networks:
            network = statistics.networks[number].get(label)
            if network is None or network.fraction < _MIN_NETWORK_SHARE:
                # Too little area to measure the thickness: use the micrograph with the largest fraction.
                network = max(networks, key=lambda network: network.fraction)
            _sample_network(mask, label, statistics.matrix, network, wanted, rng)
        else:
            table = statistics.tables[number].get(label)
            if table is None or len(table) < 3:
                table = pool_tables([table[label] for table in statistics.tables])
            if len(table):
                _sample_islands(mask, label, statistics.matrix, table, wanted, turn, rng)
        adjust_area(mask, label, statistics.matrix, wanted, rng)
    return mask


def sample_footprint(
    area: int, aspect: float, solidity: float, angle: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Samples an island of exactly `area` pixels: an ellipse, bent and roughened to match the solidity.

    Args:
        area: px.
        aspect: length / width, ≥ 1.
        solidity: area / area of the convex hull, in (0, 1].
        angle: angle of the long axis, radians from the x axis towards y.
    """
    length, width = np.sqrt(area * aspect / np.pi), np.sqrt(area / aspect / np.pi)
    reach = int(np.ceil(1.6 * length)) + 2
    rough = max(0.0, 0.95 - solidity) if area >= MIN_ROUGH_AREA else 0.0
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] + rng.uniform(-0.5, 0.5, (2, 1, 1))
    u = (x * np.cos(angle) + y * np.sin(angle)) / length
    v = (-x * np.sin(angle) + y * np.cos(angle)) / width
    # A bent, wavy axis and a width that varies along it reduce the solidity.
    v = v + min(4 * rough, 1.5) * rng.choice([-1, 1]) * (u**2 - 0.25) + 3 * rough * _wave(u, rng)
    distance = u**4 + (v / np.exp(1.5 * rough * _wave(u, rng))) ** 2
    return trim(select_highest(-distance, area))


def _wave(u: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Samples a smooth function of u with an amplitude of about 1."""
    total = np.zeros_like(u)
    for order in (1, 2, 3):
        total += rng.uniform(-1.5, 1.5) / order * np.sin(1.6 * order * u + rng.uniform(0, 2 * np.pi))
    return total


def _sample_islands(
    mask: NDArray[np.uint8],
    label: int,
    matrix: int,
    table: IslandTable,
    wanted: int,
    turn: float,
    rng: np.random.Generator,
) -> None:
    """Places islands until the class covers `wanted` pixels, the largest of each round first."""
    size = len(mask)
    others = (mask != matrix) & (mask != label)
    away = distance_transform_edt(~others) if others.any() else None
    # Larger islands are more likely to extend into the window.
    reach = size + 2 * np.sqrt(table.area * table.aspect_ratio / np.pi)
    weights = table.weight * reach**2
    weights /= weights.sum()
    centers: list[tuple[float, float]] = []
    mean = float((table.area * weights).sum())

    def measure_misfit(places: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        """Returns the sum of |log ratio| of the spacing and the clearance at each place to those of a table row."""
        misfit = np.zeros(len(places))
        if centers and np.isfinite(table.spacing[row]):
            nearest = np.sqrt(((places[:, None] - np.array(centers)[None]) ** 2).sum(axis=2).min(axis=1))
            # With fewer islands placed than expected, the target spacing is that of a randomly thinned set.
            thinned = table.spacing[row] * np.sqrt(max(wanted / mean / len(centers), 1.0))
            misfit += np.abs(np.log((nearest + 1) / (thinned + 1)))
        if away is not None and np.isfinite(table.clearance[row]):
            rows, columns = places.round().astype(int).clip(0, size - 1).T
            misfit += np.abs(np.log((away[rows, columns] + 1) / (table.clearance[row] + 1)))
        return misfit

    for _ in range(_ROUNDS):
        missing = wanted - int((mask == label).sum())
        if missing <= 0 or (centers and missing < _REMAINDER * mean):
            return
        rows = rng.choice(len(table), size=max(1, int(1.2 * missing / mean) + 1), p=weights)
        # As many islands as fit into the missing area, at least one.
        rows = rows[: 1 + int(np.searchsorted(np.cumsum(table.area[rows]), missing))]
        for row in rows[np.argsort(-table.area[rows], kind="stable")]:
            footprint = sample_footprint(
                int(table.area[row]), table.aspect_ratio[row], table.solidity[row], table.angle[row] + turn, rng
            )
            extent = np.array(footprint.shape)
            places = rng.uniform(-extent / 2, size + extent / 2, (_PLACES, 2))
            misfit = measure_misfit(places, row)
            room = wanted - int((mask == label).sum())
            if room <= 0 or (centers and room < _REMAINDER * mean):
                return
            if room < table.area[row]:
                # Prefers places where the border cuts off the excess area.
                for index, (top, left) in enumerate((places - extent / 2).round().astype(int)):
                    inside = footprint[max(-top, 0) : max(size - top, 0), max(-left, 0) : max(size - left, 0)]
                    misfit[index] += 3 * abs(int(inside.sum()) / room - 1)
            for place in places[np.argsort(misfit, kind="stable")]:
                top, left = (place - extent / 2).round().astype(int)
                if place_island(mask, footprint, label, matrix, int(top), int(left)):
                    centers.append((float(place[0]), float(place[1])))
                    break


def _sample_network(
    mask: NDArray[np.uint8], label: int, matrix: int, network: Network, wanted: int, rng: np.random.Generator
) -> None:
    """Paints films of the network's thickness along the boundaries of Voronoi grains.

    The boundary length of a Poisson-Voronoi tessellation of density λ is 2√λ per area (Okabe et al. 2000, table 5.5.1),
    which gives the grain density from phase fraction and thickness.
    """
    size = len(mask)
    density = (network.fraction / network.thickness / 2) ** 2
    length = max(4 * network.thickness, 12.0)
    points = np.mgrid[:size, :size].astype(float)
    for axis in range(2):
        points[axis] += network.thickness * smooth_noise((size, size), length, rng)
        points[axis] += 0.1 * network.thickness * smooth_noise((size, size), length / 6, rng)
    # Films are wavy, and their width varies.
    width = np.exp(0.35 * smooth_noise((size, size), 1.5 * length, rng))

    def sample_distance() -> NDArray[np.float64]:
        """Samples the distance of each pixel to the middle of the nearest film."""
        if wanted < 2 * network.thickness**2:
            # The area is too small for a network: a film that grazes the border.
            y, x = rng.permutation([rng.uniform(0, size), rng.choice([0.0, float(size)])])
            return np.hypot(points[0] - y, points[1] - x)
        seeds = rng.uniform(-size, 2 * size, (max(3, rng.poisson(density * 9 * size * size)), 2))
        # Distance to the plane between the two nearest seeds.
        distances, nearest = cKDTree(seeds).query(np.moveaxis(points, 0, -1), k=2)
        apart = np.linalg.norm(seeds[nearest[..., 0]] - seeds[nearest[..., 1]], axis=-1)
        return (distances[..., 1] ** 2 - distances[..., 0] ** 2) / (2 * np.maximum(apart, 1e-9)) / width

    candidates = (sample_distance() for _ in range(_LAYOUTS))
    distance = min(candidates, key=lambda found: abs(int((found <= network.thickness / 2).sum()) - wanted))
    distance = np.where(mask == matrix, distance, np.inf)
    mask[select_highest(-distance, wanted) & np.isfinite(distance)] = label
    # Removes the fragments that films leave at the border; `adjust_area` restores the area.
    fragments = [island for island in find_islands(mask, label) if island.footprint.sum() < network.thickness**2 / 2]
    if sum(int(island.footprint.sum()) for island in fragments) < wanted / 2:
        for island in fragments:
            mask[island.window][island.footprint] = matrix

"""Island statistics of real masks, from which procedural layouts are sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.morphology import convex_hull_image

from steelgen.data.islands import measure_islands

MIN_ROUGH_AREA = 30
"""px; smaller islands are treated as ellipses."""
_NETWORK_SHARE = 0.5
_MIN_ISLANDS = 5


@dataclass(frozen=True)
class IslandTable:
    """The islands of one class in one micrograph, one row per island; lengths in px."""

    area: NDArray[np.float64]
    aspect_ratio: NDArray[np.float64]
    """See `IslandFigures`, as for the angle."""
    solidity: NDArray[np.float64]
    """Area divided by the area of the convex hull."""
    angle: NDArray[np.float64]
    spacing: NDArray[np.float64]
    """Center distance to the nearest island of the class; infinite if there is no other."""
    clearance: NDArray[np.float64]
    """Distance from the center to the nearest pixel of a class with larger islands; infinite if there is none."""
    weight: NDArray[np.float64]
    """1 / probability to lie within the border (Miles 1974), which corrects for leaving out the islands it cuts."""

    def __len__(self) -> int:
        return len(self.area)


@dataclass(frozen=True)
class Network:
    """A class that forms one connected film."""

    thickness: float
    """Mean width of the film, px."""
    fraction: float
    """Phase fraction in the micrograph."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of masks at the scale of the generated images."""

    matrix: int
    order: list[int]
    """The other classes, in descending order of island size."""
    tables: list[dict[int, IslandTable]]
    """Island tables by class, for each micrograph."""
    networks: list[dict[int, Network]]
    """Networks by class, for each micrograph; a class is either here or in the tables."""


def measure_masks(masks: list[NDArray[np.uint8]], num_classes: int, matrix: int) -> Statistics:
    """Measures the islands of all classes except the matrix.

    A class is a network if more than half of its area lies in islands that extend over half of the shorter edge.

    Args:
        masks: (H, W) class indices or ignore_index each, at the scale of the layouts.
    """
    others = [label for label in range(num_classes) if label != matrix and any((mask == label).any() for mask in masks)]
    surveys = {label: _survey(masks, label) for label in others}
    order = sorted(others, key=lambda label: -surveys[label][0])
    statistics = Statistics(matrix, order, [{} for _ in masks], [{} for _ in masks])
    for mask, table, network in zip(masks, statistics.tables, statistics.networks, strict=True):
        larger = np.zeros(mask.shape, bool)
        for label in order:
            phase = mask == label
            if surveys[label][1] <= _NETWORK_SHARE:
                table[label] = tabulate_islands(phase, larger)
            elif phase.any():
                # In a film w pixels wide, the mean distance to the first pixel outside is w/4 + 1/2.
                depth = scipy.ndimage.distance_transform_edt(np.pad(phase, 1, mode="edge"))[1:-1, 1:-1]
                network[label] = Network(max(4 * float(depth[phase].mean()) - 2, 1.0), float(phase.mean()))
            larger |= phase
    return statistics


def tabulate_islands(phase: NDArray[np.bool_], larger: NDArray[np.bool_]) -> IslandTable:
    """Measures the islands of a class, without those cut by the border unless nearly all are.

    Args:
        phase: (H, W) bool mask of the class.
        larger: (H, W) bool mask of the classes with larger islands.
    """
    figures = measure_islands(phase)
    count = len(figures.area)
    spacing = cKDTree(figures.centers).query(figures.centers, k=2)[0][:, 1]
    clearance = np.full(count, np.inf)
    if larger.any():
        distance = scipy.ndimage.distance_transform_edt(~larger)
        clearance = distance[tuple(figures.centers.round().astype(int).T)]
    solidity = np.ones(count)
    for row in np.flatnonzero(figures.area >= MIN_ROUGH_AREA):
        top, left, bottom, right = figures.boxes[row]
        footprint = figures.labels[top:bottom, left:right] == row + 1
        solidity[row] = figures.area[row] / convex_hull_image(footprint).sum()
    seen = (1 - (figures.boxes[:, 2:] - figures.boxes[:, :2]) / np.array(phase.shape)).prod(axis=1)
    kept = figures.whole if figures.whole.sum() >= _MIN_ISLANDS else np.ones(count, bool)
    weight = 1 / np.maximum(seen, 0.1)
    columns = (figures.area, figures.aspect_ratio, solidity, figures.angle, spacing, clearance, weight)
    return IslandTable(*(column[kept] for column in columns))


def pool_tables(tables: list[IslandTable]) -> IslandTable:
    """Concatenates the tables of several micrographs."""
    names = IslandTable.__dataclass_fields__
    return IslandTable(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def _survey(masks: list[NDArray[np.uint8]], label: int) -> tuple[float, float]:
    """Returns the mean island area and the share of the area in islands over half of the shorter edge long."""
    found = [measure_islands(mask == label) for mask in masks]
    area = np.concatenate([figures.area for figures in found])
    spans = [(part.boxes[:, 2:] - part.boxes[:, :2]).max(axis=1) > min(part.labels.shape) / 2 for part in found]
    return float(area.mean()), float(area[np.concatenate(spans)].sum() / area.sum())

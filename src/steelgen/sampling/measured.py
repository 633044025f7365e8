"""Island statistics of real masks: what procedural layouts are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.morphology import convex_hull_image

from steelgen.data.islands import measure_islands

MIN_ROUGH_AREA = 30
"""px; the outline of smaller islands is that of an ellipse, as far as pixels can tell."""
_NETWORK_SHARE = 0.5
_MIN_ISLANDS = 5


@dataclass(frozen=True)
class IslandTable:
    """The islands of one class in one micrograph, one row each; lengths in px."""

    area: NDArray[np.float64]
    aspect_ratio: NDArray[np.float64]
    """See `IslandFigures`, like the angle."""
    solidity: NDArray[np.float64]
    """Area over that of the convex hull."""
    angle: NDArray[np.float64]
    spacing: NDArray[np.float64]
    """Distance from center to center of the nearest island of the class; infinite for the only one."""
    clearance: NDArray[np.float64]
    """Distance from the center to the nearest pixel of a class with larger islands; infinite where there is none."""
    weight: NDArray[np.float64]
    """1 / probability to lie within the border (Miles 1974, edge correction): islands it cuts are left out."""

    def __len__(self) -> int:
        return len(self.area)


@dataclass(frozen=True)
class Network:
    """A class that runs through the micrograph as one connected film."""

    thickness: float
    """Mean width of the film, px."""
    fraction: float
    """Area share in the micrograph."""


@dataclass(frozen=True)
class Statistics:
    """What is measured on a set of masks at the scale of the network's images."""

    matrix: int
    order: list[int]
    """The other classes, those of the largest islands first."""
    tables: list[dict[int, IslandTable]]
    """One a micrograph, by class."""
    networks: list[dict[int, Network]]
    """One a micrograph, by class; a class is either here or in the tables."""


def measure_masks(masks: list[NDArray[np.uint8]], num_classes: int, matrix: int) -> Statistics:
    """Measures the islands of all classes but the matrix.

    A class is a network where more than half of its area lies in islands that reach over half of the shorter edge.

    Args:
        masks: (H, W) class indices or ignore_index each, at the scale that layouts are wanted at.
    """
    others = [label for label in range(num_classes) if label != matrix and any((mask == label).any() for mask in masks)]
    surveys = {label: _survey(masks, label) for label in others}
    order = sorted(others, key=lambda label: -surveys[label][0])
    spanning = {label for label, (_, share) in surveys.items() if share > _NETWORK_SHARE}
    tables, networks = [], []
    for mask in masks:
        before = np.zeros(mask.shape, bool)
        table, network = {}, {}
        for label in order:
            phase = mask == label
            if label in spanning and phase.any():
                # Across a film of w pixels their centers are w/4 + 1/2 from the first pixel outside, on average.
                depth = scipy.ndimage.distance_transform_edt(np.pad(phase, 1, mode="edge"))[1:-1, 1:-1]
                network[label] = Network(max(4 * float(depth[phase].mean()) - 2, 1.0), float(phase.mean()))
            elif label not in spanning:
                table[label] = tabulate_islands(phase, before)
            before |= phase
        tables.append(table)
        networks.append(network)
    return Statistics(matrix, order, tables, networks)


def tabulate_islands(phase: NDArray[np.bool_], larger: NDArray[np.bool_]) -> IslandTable:
    """Measures the islands of a class; those that the border cuts are left out unless nearly all are.

    Args:
        phase: (H, W), True in the class.
        larger: (H, W), True in the classes with larger islands.
    """
    figures = measure_islands(phase)
    count = len(figures.area)
    spacing = np.full(count, np.inf)
    if count > 1:
        spacing = cKDTree(figures.centers).query(figures.centers, k=2)[0][:, 1]
    clearance = np.full(count, np.inf)
    if larger.any() and count:
        distance = scipy.ndimage.distance_transform_edt(~larger)
        clearance = distance[tuple(figures.centers.round().astype(int).T)]
    solidity = np.ones(count)
    for row in np.flatnonzero(figures.area >= MIN_ROUGH_AREA):
        top, left, bottom, right = figures.boxes[row]
        footprint = figures.labels[top:bottom, left:right] == row + 1
        solidity[row] = figures.area[row] / convex_hull_image(footprint).sum()
    seen = (1 - (figures.boxes[:, 2:] - figures.boxes[:, :2]) / np.array(phase.shape)).prod(axis=1)
    kept = figures.whole if figures.whole.sum() >= _MIN_ISLANDS else np.ones(count, bool)
    return IslandTable(
        area=figures.area[kept],
        aspect_ratio=figures.aspect_ratio[kept],
        solidity=solidity[kept],
        angle=figures.angle[kept],
        spacing=spacing[kept],
        clearance=clearance[kept],
        weight=(1 / np.maximum(seen, 0.1))[kept],
    )


def pool_tables(tables: list[IslandTable]) -> IslandTable:
    """The rows of several micrographs as one table."""
    names = IslandTable.__dataclass_fields__
    return IslandTable(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def _survey(masks: list[NDArray[np.uint8]], label: int) -> tuple[float, float]:
    """Mean area of a class's islands, and the share of its area in those that reach over half of the shorter edge."""
    found = [measure_islands(mask == label) for mask in masks]
    area = np.concatenate([figures.area for figures in found])
    spans = [(part.boxes[:, 2:] - part.boxes[:, :2]).max(axis=1) > min(part.labels.shape) / 2 for part in found]
    return float(area.mean()), float(area[np.concatenate(spans)].sum() / area.sum())

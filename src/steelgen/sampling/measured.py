"""Island statistics of real masks: what procedural layouts are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.morphology import convex_hull_image

from steelgen.sampling.islands import find_islands

MIN_ROUGH_AREA = 30
"""px; the outline of smaller islands is that of an ellipse, as far as pixels can tell."""
_NETWORK_SHARE = 0.5
_MIN_ISLANDS = 5


@dataclass(frozen=True)
class IslandTable:
    """The islands of one class in one micrograph, one row each; lengths in px."""

    area: NDArray[np.float64]
    aspect: NDArray[np.float64]
    """Length over width of the ellipse with the same second moments."""
    solidity: NDArray[np.float64]
    """Area over that of the convex hull."""
    angle: NDArray[np.float64]
    """Of the long axis, radians from the x axis towards y."""
    spacing: NDArray[np.float64]
    """Distance from centre to centre of the nearest island of the class; infinite for the only one."""
    clearance: NDArray[np.float64]
    """Distance from the centre to the nearest pixel of a class with larger islands; infinite where there is none."""
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
    mean_area = {label: _mean_area(masks, label) for label in others}
    order = sorted(others, key=lambda label: -mean_area[label])
    spanning = {label for label in others if _spanning_share(masks, label) > _NETWORK_SHARE}
    tables, networks = [], []
    for mask in masks:
        before = np.zeros(mask.shape, bool)
        table, network = {}, {}
        for label in order:
            phase = mask == label
            if label in spanning and phase.any():
                # Across a film of w pixels their centres are w/4 + 1/2 from the first pixel outside, on average.
                depth = scipy.ndimage.distance_transform_edt(np.pad(phase, 1, mode="edge"))[1:-1, 1:-1]
                network[label] = Network(max(4 * float(depth[phase].mean()) - 2, 1.0), float(phase.mean()))
            elif label not in spanning:
                table[label] = measure_islands(phase, before)
            before |= phase
        tables.append(table)
        networks.append(network)
    return Statistics(matrix, order, tables, networks)


def measure_islands(phase: NDArray[np.bool_], larger: NDArray[np.bool_]) -> IslandTable:
    """Measures the islands of a class; those that the border cuts are left out unless nearly all are.

    Args:
        phase: (H, W), True in the class.
        larger: (H, W), True in the classes with larger islands.
    """
    labelled, count = scipy.ndimage.label(phase)
    numbers = labelled[phase]
    y, x = (part.astype(float) for part in np.nonzero(phase))

    def sums(values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        return np.bincount(numbers, values, count + 1)[1:].astype(float)

    area = sums()
    centres = np.stack([sums(y), sums(x)], axis=1) / np.maximum(area, 1)[:, None]
    dy, dx = y - centres[numbers - 1, 0], x - centres[numbers - 1, 1]
    # A pixel is a unit square, not a point: 1/12 is its own second moment.
    yy, xx, xy = sums(dy**2) / area + 1 / 12, sums(dx**2) / area + 1 / 12, sums(dx * dy) / area
    spread = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    aspect = np.sqrt(((xx + yy) / 2 + spread) / np.maximum((xx + yy) / 2 - spread, 1e-9))

    spacing = np.full(count, np.inf)
    if count > 1:
        spacing = cKDTree(centres).query(centres, k=2)[0][:, 1]
    clearance = np.full(count, np.inf)
    if larger.any() and count:
        clearance = scipy.ndimage.distance_transform_edt(~larger)[tuple(centres.round().astype(int).T)]
    windows = scipy.ndimage.find_objects(labelled)
    boxes = np.array([(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in windows]).reshape(-1, 4)
    solidity = np.ones(count)
    for number in np.flatnonzero(area >= MIN_ROUGH_AREA):
        footprint = labelled[windows[number]] == number + 1
        solidity[number] = area[number] / convex_hull_image(footprint).sum()
    whole = (boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2:] < phase.shape).all(axis=1)
    seen = (1 - (boxes[:, 2:] - boxes[:, :2]) / np.array(phase.shape)).prod(axis=1)
    kept = whole if whole.sum() >= _MIN_ISLANDS else np.ones(count, bool)
    return IslandTable(
        area=area[kept],
        aspect=aspect[kept],
        solidity=solidity[kept],
        angle=(np.arctan2(2 * xy, xx - yy) / 2)[kept],
        spacing=spacing[kept],
        clearance=clearance[kept],
        weight=(1 / np.maximum(seen, 0.1))[kept],
    )


def pool_tables(tables: list[IslandTable]) -> IslandTable:
    """The rows of several micrographs as one table."""
    names = IslandTable.__dataclass_fields__
    return IslandTable(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def _mean_area(masks: list[NDArray[np.uint8]], label: int) -> float:
    count = sum(scipy.ndimage.label(mask == label)[1] for mask in masks)
    return sum(int((mask == label).sum()) for mask in masks) / max(count, 1)


def _spanning_share(masks: list[NDArray[np.uint8]], label: int) -> float:
    spanning = total = 0
    for mask in masks:
        for island in find_islands(mask, label):
            area = int(island.footprint.sum())
            total += area
            spanning += area * (max(island.footprint.shape) > min(mask.shape) / 2)
    return spanning / max(total, 1)

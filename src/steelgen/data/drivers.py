"""Topological drivers: drawings of a mask's geometry that steer a pretrained generator.

Source: Valvano et al. 2024 (arXiv 2401.03152), section 3.2, whose drivers are a coarse drawing of the part and the
mask of its defect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import list_pairs, list_splits, load_dataset_info, load_pair
from steelgen.data.images import save_micrograph
from steelgen.data.instances import compute_instance_edges
from steelgen.errors import InputError
from steelgen.files import new_folder

DRIVERS = ("classes", "outlines", "skeletons", "distance")
MAX_DISTANCE = 32
"""Distance in px that gives the largest value of the plane `distance`."""


@dataclass(frozen=True)
class DriverOptions:
    """Which planes to make; see `ControlSection`."""

    drivers: tuple[str, ...]
    coarsen: int = 1

    def list_planes(self, num_classes: int) -> list[str]:
        """Names of the planes in their order: "class-0", "class-1", …, "outlines", "skeletons", "distance"."""
        names: list[str] = []
        for driver in self.drivers:
            names += [f"class-{index}" for index in range(num_classes)] if driver == "classes" else [driver]
        return names

    def draw(self, mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.float32]:
        """Makes the planes of a mask.

        `classes` are one-hot. `outlines` are the pixels at a border between classes, on both sides. `skeletons` are the
        center lines of all islands of classes other than the first. `distance` is the distance of a pixel to the
        nearest outline, in units of 32 px and at most 1. Ignored pixels are 0 in all planes.

        Args:
            mask: (H, W) class indices; indices ≥ num_classes are ignored pixels.

        Returns:
            (D, H, W) in [0, 1].
        """
        known = mask < num_classes
        planes: list[NDArray] = []
        for driver in self.drivers:
            if driver == "classes":
                planes += list(mask == np.arange(num_classes)[:, None, None])
            elif driver == "outlines":
                planes.append(compute_instance_edges(mask) & known)
            elif driver == "skeletons":
                planes.append(_draw_skeletons(mask, num_classes))
            else:
                planes.append(_measure_distance(mask) * known)
        return _coarsen(np.stack(planes).astype(np.float32), self.coarsen)


def compute_drivers(masks: NDArray[np.integer], num_classes: int, options: DriverOptions) -> NDArray[np.float32]:
    """Makes the drivers (N, D, H, W) in [0, 1] of masks (N, H, W); see `DriverOptions.draw`."""
    return np.stack([options.draw(mask, num_classes) for mask in masks])


def save_drivers(
    dataset: Path,
    out: Path,
    drivers: Sequence[str] = DRIVERS,
    coarsen: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Writes the drivers of a dataset folder's masks as gray images OUT/SPLIT/PLANE/STEM.png, 255 for 1.

    Returns:
        The number of masks by split.

    Raises:
        InputError: if the folder has no masks, or `out` is in use.
    """
    info = load_dataset_info(dataset)
    if not info.num_classes:
        raise InputError(f"{dataset}: has no masks to make drivers from")
    if unknown := [name for name in drivers if name not in DRIVERS]:
        raise InputError(f"drivers {unknown[0]!r}: must be one of {', '.join(DRIVERS)}")
    options = DriverOptions(tuple(drivers), coarsen)
    pairs = [(split, pair) for split in list_splits(dataset) for pair in list_pairs(dataset, split)]
    counts: dict[str, int] = {}
    with new_folder(out) as working:
        for done, (split, pair) in enumerate(pairs, start=1):
            _, mask = load_pair(pair, info)
            planes = options.draw(mask, info.num_classes)
            for name, plane in zip(options.list_planes(info.num_classes), planes, strict=True):
                save_micrograph(
                    working / split / name / f"{pair.image.stem}.png", np.rint(plane * 255).astype(np.uint8)
                )
            counts[split] = counts.get(split, 0) + 1
            report(done, len(pairs))
    return counts


def _draw_skeletons(mask: NDArray[np.integer], num_classes: int) -> NDArray[np.bool_]:
    from skimage.morphology import skeletonize

    drawn = np.zeros(mask.shape, bool)
    for index in range(1, num_classes):
        if (mask == index).any():
            drawn |= skeletonize(mask == index)
    return drawn


def _measure_distance(mask: NDArray[np.integer]) -> NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt

    outlines = compute_instance_edges(mask)
    if not outlines.any():
        return np.ones(mask.shape)
    distances = distance_transform_edt(~outlines)
    return np.minimum(distances / MAX_DISTANCE, 1)


def _coarsen(planes: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Replaces pixels by the mean of their block of edge × edge; blocks at the lower and right end may be smaller."""
    if edge == 1:
        return planes
    height, width = planes.shape[1:]
    rows, columns = np.arange(0, height, edge), np.arange(0, width, edge)
    sums = np.add.reduceat(np.add.reduceat(planes, rows, axis=1), columns, axis=2)
    counts = np.diff(np.append(rows, height))[:, None] * np.diff(np.append(columns, width))[None]
    means = (sums / counts).repeat(edge, axis=1).repeat(edge, axis=2)
    return np.ascontiguousarray(means[:, :height, :width], dtype=np.float32)

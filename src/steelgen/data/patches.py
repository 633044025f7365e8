"""Patches around islands, around annotated instances, or on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steelgen.data.cache import Micrographs
from steelgen.data.islands import label_islands, measure_islands
from steelgen.errors import InputError

PatchKind = Literal["islands", "instances", "grid"]


@dataclass(frozen=True)
class Patch:
    """One patch of a micrograph and its island."""

    micrograph: int
    """Index of the micrograph."""
    center: tuple[int, int]
    """Row and column, px."""
    label: int
    """Class index of the island; -1 on a grid."""
    box: tuple[slice, slice]
    """Rows and columns of the island's bounding box, or of the grid cell."""
    seed: tuple[int, int]
    """Row and column of one of the island's pixels."""
    area: float
    """Area of the island or grid cell, px²."""
    aspect_ratio: float
    """Length over width of the ellipse of equal second moments; NaN on a grid."""
    angle: float
    """Direction of the long axis, radians counterclockwise from the x axis; NaN on a grid."""


@dataclass(frozen=True)
class PatchCenters:
    """Rule that selects patches of micrographs. Objects cut by the micrograph's edge are excluded."""

    kind: PatchKind
    classes: tuple[str, ...] | None
    """Class names; None for all but the first, which is the matrix."""
    min_area: int
    """Area of the smallest island or instance, px²."""
    spacing: int
    """Distance between grid centers, px."""

    def find(
        self, micrographs: Micrographs, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Patch]:
        """Finds all patches in the order of micrographs; see `find_any`.

        Raises:
            InputError: also if there are none.
        """
        patches = self.find_any(micrographs, report)
        if not patches:
            names = micrographs.info.class_names
            classes = ", ".join(names[label] for label in self.find_labels(micrographs)) or "any class"
            raise InputError(
                f"{micrographs.info.name}: no {self.kind} of {classes} with at least {self.min_area} px inside the "
                "micrographs' edges; lower min_area or select other classes"
            )
        return patches

    def find_any(
        self, micrographs: Micrographs, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Patch]:
        """Finds all patches, possibly none.

        Args:
            micrographs: a split.
            report: receives (micrographs done, total micrographs).

        Raises:
            InputError: see `find_labels`.
        """
        labels = self.find_labels(micrographs)
        patches: list[Patch] = []
        for index in range(len(micrographs)):
            patches += self._find_in(micrographs, index, labels)
            report(index + 1, len(micrographs))
        return patches

    def rescale(self, factor: float) -> PatchCenters:
        """Returns the rule for images resized by `factor`."""
        min_area, spacing = max(1, round(self.min_area * factor**2)), max(2, round(self.spacing * factor))
        return replace(self, min_area=min_area, spacing=spacing)

    def find_labels(self, micrographs: Micrographs) -> list[int]:
        """Returns the indices of the selected classes; may be empty for a grid.

        Raises:
            InputError: if a class is unknown, the matrix is the only class, or there are no instances.
        """
        info = micrographs.info
        if self.kind == "instances" and micrographs.instances is None:
            raise InputError(f"{info.name}: has no instances/ folder next to its masks; set patches to 'islands'")
        if self.classes is None:
            labels = list(range(1, info.num_classes))
        else:
            for name in self.classes:
                if name not in info.class_names:
                    known = ", ".join(info.class_names) or "none"
                    raise InputError(f"classes: {name!r} is not a class of {info.name}; known: {known}")
            labels = [info.class_names.index(name) for name in self.classes]
        if not labels and self.kind != "grid":
            classes = f"only one class ({info.class_names[0]})" if info.class_names else "no classes"
            raise InputError(f"{info.name}: has {classes}, hence no islands; set patches to 'grid'")
        return labels

    def _find_in(self, micrographs: Micrographs, index: int, labels: list[int]) -> Iterator[Patch]:
        mask = micrographs.masks[index]
        if self.kind == "grid":
            yield from self._lay_grid(index, mask.shape)
        elif self.kind == "islands":
            for label in labels:
                yield from self._measure(index, mask == label, label)
        else:
            assert micrographs.instances is not None
            ids = micrographs.instances[index]
            for number in np.unique(ids[ids > 0]):
                own = ids == number
                label = int(np.bincount(mask[own]).argmax())
                if label in labels:
                    # The largest part, if another object divides it.
                    yield from sorted(self._measure(index, own, label), key=lambda patch: -patch.area)[:1]

    def _measure(self, index: int, phase: NDArray[np.bool_], label: int) -> Iterator[Patch]:
        figures = measure_islands(phase)
        firsts = _find_first_pixels(figures.labels)
        for row in np.flatnonzero(figures.whole & (figures.area >= self.min_area)):
            top, left, bottom, right = (int(value) for value in figures.boxes[row])
            y, x = (int(value) for value in np.rint(figures.centers[row]))
            yield Patch(
                index,
                (y, x),
                label,
                (slice(top, bottom), slice(left, right)),
                firsts[row],
                float(figures.area[row]),
                float(figures.aspect_ratio[row]),
                -float(figures.angle[row]),
            )

    def _lay_grid(self, index: int, shape: tuple[int, ...]) -> Iterator[Patch]:
        half = self.spacing // 2
        for y in range(half, shape[0] - half + 1, self.spacing):
            for x in range(half, shape[1] - half + 1, self.spacing):
                box = slice(y - half, y + half), slice(x - half, x + half)
                yield Patch(index, (y, x), -1, box, (y, x), float(self.spacing**2), np.nan, np.nan)


def check_patch_size(micrographs: Micrographs, edges: Sequence[int]) -> None:
    """Raises InputError if patches are larger than their micrograph; `edges` has their edge in px per micrograph."""
    for stem, mask, edge in zip(micrographs.stems, micrographs.masks, edges, strict=True):
        if min(mask.shape) < edge:
            raise InputError(
                f"{micrographs.info.name}: crop_size {edge} px exceeds micrograph {stem} of "
                f"{mask.shape[1]}x{mask.shape[0]} px"
            )


def select_island(patch: Patch, micrographs: Micrographs, kind: PatchKind, neighbors: bool) -> NDArray[np.uint8]:
    """Returns a binary mask (H, W) of a patch's island, or of several islands.

    Args:
        patch: a result of `PatchCenters.find`.
        micrographs: the micrographs it was found in.
        kind: kind of the patch. A grid shows all classes but the first.
        neighbors: include other islands of the same class.
    """
    mask = micrographs.masks[patch.micrograph]
    if kind == "grid":
        return ((mask > 0) & (mask < micrographs.info.num_classes)).astype(np.uint8)
    if neighbors:
        return (mask == patch.label).astype(np.uint8)
    inside = mask[patch.box] == patch.label
    if kind == "instances":
        assert micrographs.instances is not None
        ids = micrographs.instances[patch.micrograph]
        inside = ids[patch.box] == ids[patch.seed]
    labels, _ = label_islands(inside)
    rows, columns = patch.box
    own = np.zeros(mask.shape, np.uint8)
    own[patch.box] = labels == labels[patch.seed[0] - rows.start, patch.seed[1] - columns.start]
    return own


def _find_first_pixels(labels: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Returns row and column of the first pixel, in row-major order, of each island 1 … K of a labeled image."""
    numbers, places = np.unique(labels, return_index=True)
    return [
        (int(place) // labels.shape[1], int(place) % labels.shape[1])
        for number, place in zip(numbers, places, strict=True)
        if number > 0
    ]

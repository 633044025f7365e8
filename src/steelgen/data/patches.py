"""Where patches lie: around islands, around annotated instances, or on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """One place of a micrograph, and the island there."""

    micrograph: int
    """Its index."""
    center: tuple[int, int]
    """Row and column, px."""
    label: int
    """Class of the island; -1 on a grid."""
    box: tuple[slice, slice]
    """Rows and columns of the island's bounding box, or of the cell of a grid."""
    seed: tuple[int, int]
    """Row and column of one of the island's pixels."""
    area: float
    """px of the island; of the cell of a grid."""
    aspect_ratio: float
    """Length over width of the ellipse of equal second moments; NaN on a grid."""
    angle: float
    """Of its long axis, radians counterclockwise from the x axis; NaN on a grid."""


@dataclass(frozen=True)
class PatchCenters:
    """Which places of micrographs are cut as patches. What the micrograph's edge cuts is left out: it has no shape."""

    kind: PatchKind
    classes: tuple[str, ...] | None
    """Names; None: all but the first, which is the matrix."""
    min_area: int
    """px of the smallest island or instance."""
    spacing: int
    """px between the centers of a grid."""

    def find(
        self, micrographs: Micrographs, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Patch]:
        """All patches, micrograph by micrograph; see `find_any`.

        Raises:
            InputError: also if there is none.
        """
        found = self.find_any(micrographs, report)
        if not found:
            names = micrographs.info.class_names
            wanted = ", ".join(names[label] for label in self.find_labels(micrographs)) or "no class"
            raise InputError(
                f"{micrographs.info.name}: no {self.kind} of {wanted} with at least {self.min_area} px that the "
                "micrograph's edge does not cut; lower min_area or name other classes"
            )
        return found

    def find_any(
        self, micrographs: Micrographs, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Patch]:
        """All patches, if there are any.

        Args:
            micrographs: a split.
            report: told (micrographs done, micrographs in all).

        Raises:
            InputError: if what is asked for cannot be in the data.
        """
        labels = self.find_labels(micrographs)
        found: list[Patch] = []
        for index in range(len(micrographs)):
            found += self._find_in(micrographs, index, labels)
            report(index + 1, len(micrographs))
        return found

    def rescale(self, factor: float) -> PatchCenters:
        """The same for images whose pixels are 1 / factor of the micrographs' pixels."""
        min_area, spacing = max(1, round(self.min_area * factor**2)), max(2, round(self.spacing * factor))
        return replace(self, min_area=min_area, spacing=spacing)

    def find_labels(self, micrographs: Micrographs) -> list[int]:
        """Indices of the classes that patches are made of; none for a grid without classes.

        Raises:
            InputError: if a class is unknown, there is no class beside the matrix, or there are no instances.
        """
        info = micrographs.info
        if self.kind == "instances" and micrographs.instances is None:
            raise InputError(f"{info.name}: has no instances/ beside its masks; use patches 'islands'")
        if self.classes is None:
            labels = list(range(1, info.num_classes))
        else:
            for name in self.classes:
                if name not in info.class_names:
                    known = ", ".join(info.class_names) or "none"
                    raise InputError(f"classes {name!r}: not a class of {info.name} (known: {known})")
            labels = [info.class_names.index(name) for name in self.classes]
        if not labels and self.kind != "grid":
            classes = f"one class alone ({info.class_names[0]})" if info.class_names else "no classes"
            raise InputError(f"{info.name}: has {classes}, so there are no islands in a matrix; use patches 'grid'")
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
                    # The largest part, where another object lies across it.
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


def check_patch_size(micrographs: Micrographs, edge: int) -> None:
    """Raises InputError if patches of that edge, in px, are larger than a micrograph."""
    for stem, mask in zip(micrographs.stems, micrographs.masks, strict=True):
        if min(mask.shape) < edge:
            raise InputError(
                f"{micrographs.info.name}: patches of {edge} px (crop_size) are larger than the micrograph {stem} of "
                f"{mask.shape[1]}x{mask.shape[0]} px"
            )


def select_island(patch: Patch, micrographs: Micrographs, kind: PatchKind, neighbors: bool) -> NDArray[np.uint8]:
    """What of a micrograph's mask a patch shows, (H, W), 1 where it is: its island alone, or all islands.

    Args:
        patch: one of `PatchCenters.find`.
        micrographs: those that it was found in.
        kind: how it was found.
        neighbors: with the other islands of its class; on a grid of all classes but the first.
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
    """Row and column of the first pixel of each island 1 … K of a labeled image, in the order of rows."""
    numbers, places = np.unique(labels, return_index=True)
    return [
        (int(place) // labels.shape[1], int(place) % labels.shape[1])
        for number, place in zip(numbers, places, strict=True)
        if number > 0
    ]

"""What an importer reads: micrographs with their annotations, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo


@dataclass(frozen=True)
class Annotation:
    """One annotated region of one micrograph, as polygons, as runs, or as both together."""

    class_index: int
    """Index into the set's class names, or its ignore_index."""
    polygons: tuple[NDArray[np.float64], ...] = ()
    """(N, 2) vertices (x, y) each, in pixels from the outer corner of the top left pixel; the region is their union."""
    runs: NDArray[np.int64] | None = None
    """(N, 2) start and length, 0-based, down the columns of the whole image."""
    annotator: str = ""
    is_instance: bool = True
    """False for a region that stands for many objects at once (a COCO crowd)."""


@dataclass(frozen=True)
class Legend:
    """What the colors of masks mean."""

    colors: tuple[tuple[int, int, int], ...]
    """RGB, 0-255."""
    class_indices: tuple[int, ...]
    """The class of each color, or ignore_index."""
    unlabeled: int = 0
    """The class of transparent pixels, and of those that a mask painted over a copy of its image left as they are."""
    tolerance: int = 0
    """How much each channel may differ from a legend's color; the nearest one counts."""


@dataclass(frozen=True)
class IndexMask:
    """A mask that already exists as a file, of class indices, of colors, or of the ids of objects."""

    path: Path
    lookup: NDArray[np.uint8]
    """(256,) class index of every value in the file."""
    instances: Path | None = None
    """A file of instance ids, where the source has one."""
    legend: Legend | None = None
    """For a mask in colors."""
    holds_objects: bool = False
    """Every value but 0 is an object of class 1, in `instances`."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One micrograph and everything the source says about it."""

    path: Path
    stem: str
    """The name its image and mask get in the dataset folder."""
    parent: str
    """The micrograph that this image is a tile of; its own stem where it is none."""
    annotations: tuple[Annotation, ...] = ()
    masks: tuple[IndexMask, ...] = ()
    """Masks as files, one an annotator; an image has either annotations or masks."""
    annotators: tuple[str, ...] = ("",)
    """Everybody who looked at the image, including those who marked nothing."""
    split: str | None = None
    """The split the source suggests."""
    size: tuple[int, int] | None = None
    """(height, width) as the source states it, checked against the file."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnnotatedSet:
    """What a reader returns: nothing is decoded yet but the annotations."""

    info: DatasetInfo
    images: list[AnnotatedImage]

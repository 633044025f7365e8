"""Annotated micrographs as importers return them, before rasterization."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo
from steelgen.data.splits import parent_of


@dataclass(frozen=True)
class Annotation:
    """One annotated region of a micrograph: the union of its polygons and runs."""

    class_index: int
    """Index into the class names, or ignore_index."""
    polygons: tuple[NDArray[np.float64], ...] = ()
    """(N, 2) vertices (x, y) each, in pixels from the outer corner of the top left pixel."""
    runs: NDArray[np.int64] | None = None
    """(N, 2) 0-based start and length, down the columns of the whole image."""
    annotator: str = ""
    is_instance: bool = True
    """False if the region is not a single object: a COCO crowd, background, pixels to ignore."""


@dataclass(frozen=True)
class Legend:
    """Classes of the colors in masks."""

    colors: tuple[tuple[int, int, int], ...]
    """RGB, 0-255."""
    class_indices: tuple[int, ...]
    """Class of each color, or ignore_index."""
    unlabeled: int = 0
    """Class of transparent pixels, and of unchanged pixels in a mask that was painted over a copy of its image."""
    tolerance: int = 0
    """Largest difference per channel from a legend's color; the nearest color counts."""


@dataclass(frozen=True)
class IndexMask:
    """Mask file of class indices, colors, or object ids."""

    path: Path
    lookup: NDArray[np.uint8] = field(default_factory=lambda: np.arange(256, dtype=np.uint8))
    """(256,) class index of each value in the file."""
    instances: Path | None = None
    """File of instance ids, if the source has one."""
    legend: Legend | None = None
    """Classes of the colors, for a mask in colors."""
    holds_objects: bool = False
    """All values except 0 are ids of objects of class 1, in `instances`."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One micrograph with its annotations or masks."""

    path: Path
    stem: str = ""
    """File stem in the dataset folder; empty means the stem of `path`."""
    parent: str = ""
    """Micrograph that this image is a tile of; empty means by the stem, see `splits.parent_of`."""
    annotations: tuple[Annotation, ...] = ()
    masks: tuple[IndexMask, ...] = ()
    """Mask files, one per annotator; an image has either annotations or masks."""
    annotators: tuple[str, ...] = ("",)
    """All annotators of the image, including those who marked nothing."""
    split: str | None = None
    """Split in the source."""
    size: tuple[int, int] | None = None
    """(height, width) in the source, checked against the file."""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem", self.stem or self.path.stem)
        object.__setattr__(self, "parent", self.parent or parent_of(self.stem))


def join_annotators(first: AnnotatedImage | None, image: AnnotatedImage, annotator: str) -> AnnotatedImage:
    """Adds the annotations of one annotator to those of the others, `first`."""
    annotations = tuple(replace(annotation, annotator=annotator) for annotation in image.annotations)
    if first is None:
        return replace(image, annotations=annotations, annotators=(annotator,))
    return replace(first, annotations=first.annotations + annotations, annotators=(*first.annotators, annotator))


@dataclass(frozen=True)
class AnnotatedSet:
    """Result of an importer: a dataset with its annotations decoded and its images not yet read."""

    info: DatasetInfo
    images: list[AnnotatedImage]

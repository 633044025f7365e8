"""Looking through a folder of pairs: what is in it, how it looks, and which pairs are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import (
    DatasetInfo,
    Pair,
    find_images,
    list_pairs,
    list_samples,
    list_splits,
    load_dataset_info,
    load_pair,
)
from steelgen.data.islands import compute_island_areas
from steelgen.data.palette import color_mask
from steelgen.data.rejects import load_rejects, save_rejects
from steelgen.data.sheets import build_thumbnail
from steelgen.errors import InputError
from steelgen.sampling.formats import LAYOUTS

_EDGE = 320
"""Longest edge of what is shown, px."""
_MEASURED = 100
"""Masks that figures are taken from, evenly over a folder."""
_SAMPLES = LAYOUTS["folders"].samples


@dataclass(frozen=True)
class Part:
    """Pairs that share a rejects.txt: a split of a dataset, or a folder of samples."""

    name: str
    pairs: list[Pair]
    images: Path
    """The folder of their images, which numbered ones may lie in."""

    @property
    def folder(self) -> Path:
        """Where the rejects.txt is written: beside the folder of images, or in a plain one."""
        return self.images.parent if self.images.name in ("images", _SAMPLES) else self.images

    @property
    def rejects(self) -> frozenset[str]:
        """The stems that are rejected now."""
        return load_rejects(self.images)


@dataclass(frozen=True)
class Collection:
    """A dataset, a folder of samples, or a plain folder of images."""

    info: DatasetInfo
    parts: dict[str, Part]


class ClassFigures(NamedTuple):
    """What the masks of a part hold of one class."""

    name: str
    share: float
    """Of the pixels that are not ignored, 0-1."""
    islands: int
    diameter: float
    """Median diameter of the circle with an island's area, px; NaN without islands."""


def open_collection(folder: Path) -> Collection:
    """Lists what a folder holds; nothing is decoded.

    Raises:
        InputError: if it holds no pairs, or they do not match.
    """
    if (folder / _SAMPLES).is_dir():
        pairs = list_samples(folder)
        if not pairs:
            raise InputError(f"{folder / _SAMPLES}: holds no images yet")
        return Collection(load_dataset_info(folder), {_SAMPLES: Part(_SAMPLES, pairs, folder / _SAMPLES)})
    info = load_dataset_info(folder)
    parts = {
        split: Part(split, list_pairs(folder, split, with_rejects=True), find_images(folder, split))
        for split in list_splits(folder)
    }
    if not parts:
        raise InputError(f"{folder}: has no train/, val/ or test/ with images/")
    return Collection(info, parts)


def set_rejected(part: Part, stem: str, rejected: bool) -> None:
    """Adds a stem to the part's rejects.txt, or takes it out.

    Raises:
        InputError: if there is no such pair.
    """
    if all(pair.stem != stem for pair in part.pairs):
        raise InputError(f"{part.folder}: holds no pair {stem!r}")
    before = part.rejects
    save_rejects(part.folder, before | {stem} if rejected else before - {stem})


def show_pair(pair: Pair, info: DatasetInfo, view: str) -> NDArray[np.uint8]:
    """One pair as a small picture.

    Args:
        view: overlay, image or mask.

    Returns:
        (h, w, 3) uint8 RGB, the longer edge at most 320 px.

    Raises:
        InputError: if the pair cannot be read.
    """
    image, mask = load_pair(pair, info if pair.mask else info.model_copy(update={"class_names": [], "palette": []}))
    if view != "mask":
        return build_thumbnail(image, mask, info.palette if view == "overlay" else [], _EDGE)
    small = Image.fromarray(mask)
    small.thumbnail((_EDGE, _EDGE), Image.Resampling.NEAREST)
    return color_mask(np.asarray(small), info.palette)


def measure_classes(pairs: Sequence[Pair], info: DatasetInfo) -> tuple[list[ClassFigures], int]:
    """Area share and islands of each class, over at most 100 masks, and how many masks that were.

    Raises:
        InputError: if a mask cannot be read.
    """
    labeled = [pair for pair in pairs if pair.mask]
    chosen = labeled[:: max(1, -(-len(labeled) // _MEASURED))]
    measured = [
        _measure(pair, pair.mask.stat().st_mtime_ns, info.num_classes, info.ignore_index, info.source)
        for pair in chosen
        if pair.mask
    ]
    pixels = np.sum([counts for counts, _ in measured], axis=0) if measured else np.zeros(info.num_classes)
    figures = []
    for label, name in enumerate(info.class_names):
        areas = np.concatenate([islands[label] for _, islands in measured] or [np.zeros(0, np.int64)])
        diameter = float(np.sqrt(4 / np.pi * np.median(areas))) if len(areas) else np.nan
        figures.append(ClassFigures(name, float(pixels[label] / max(pixels.sum(), 1)), len(areas), diameter))
    return figures, len(chosen)


@lru_cache(maxsize=4096)
def _measure(
    pair: Pair, changed: int, num_classes: int, ignore_index: int, source: str
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Pixels and areas of islands of each class of one mask; `changed` is when, so that a new one is read anew."""
    names = [f"class_{label}" for label in range(num_classes)]
    info = DatasetInfo(name="", class_names=names, ignore_index=ignore_index, source=source)
    _, mask = load_pair(pair, info)
    counts = np.bincount(mask.ravel(), minlength=256)[:num_classes]
    areas = [
        compute_island_areas(mask == label) if counts[label] else np.zeros(0, np.int64) for label in range(num_classes)
    ]
    return counts, areas

"""Consistency check of a dataset folder, with statistics of its contents; each file is opened once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import (
    DatasetInfo,
    Pair,
    find_images,
    find_masks,
    list_images,
    list_splits,
    load_dataset_info,
    load_instances,
    load_mask,
    load_metadata,
)
from steelgen.data.images import load_image
from steelgen.data.islands import compute_island_areas
from steelgen.data.pool import map_on_cores
from steelgen.data.sheets import build_thumbnail
from steelgen.errors import InputError

MAX_THUMBNAILS = 24
"""Number of overlays per split."""


class Problem(NamedTuple):
    """A problem of a dataset folder that the user has to fix."""

    file: str
    message: str


class Thumbnail(NamedTuple):
    """A small overlay, for contact sheet and page."""

    caption: str
    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""


@dataclass
class SplitSummary:
    """Statistics of the valid pairs of one split."""

    num_images: int
    class_pixels: NDArray[np.int64]
    """(num_classes,)."""
    ignored_pixels: int
    intensity: NDArray[np.int64]
    """(256,) number of pixels per gray level."""
    sizes: dict[tuple[int, int], int]
    """Number of images per (width, height)."""
    island_areas: list[NDArray[np.int64]]
    """Areas of the islands of each class in px; empty for class 0."""

    @property
    def num_pixels(self) -> int:
        """Number of pixels, including ignored ones."""
        return int(self.class_pixels.sum()) + self.ignored_pixels

    def share(self, class_index: int) -> float:
        """Computes the share of a class in all pixels, 0-1."""
        return float(self.class_pixels[class_index]) / max(self.num_pixels, 1)

    @property
    def mean_intensity(self) -> float:
        """Mean gray level, 0-255."""
        return float((self.intensity * np.arange(256)).sum() / max(self.intensity.sum(), 1))


@dataclass
class CheckReport:
    """Result of `check_dataset`."""

    root: Path
    info: DatasetInfo
    problems: list[Problem] = field(default_factory=list)
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    thumbnails: list[Thumbnail] = field(default_factory=list)


class _Contents(NamedTuple):
    """Statistics of a valid pair."""

    size: tuple[int, int]
    counts: NDArray[np.int64]
    intensity: NDArray[np.int64]
    island_areas: list[NDArray[np.int64]]
    shrunken: NDArray[np.float32]
    thumbnail: NDArray[np.uint8] | None


def check_dataset(root: Path, report: Callable[[int, int], None] | None = None) -> CheckReport:
    """Opens each image, mask and instance map of a dataset folder.

    Args:
        root: dataset folder.
        report: progress callback, called with (done, total).

    Returns:
        The problems (missing partners, sizes, indices, unreadable files, metadata of missing files, parents in two
        splits, near-duplicates across splits), and statistics of the valid pairs.

    Raises:
        InputError: if `root` is not a dataset folder or its dataset.json or metadata.jsonl cannot be read.
    """
    result = CheckReport(root, load_dataset_info(root))
    labeled = result.info.num_classes > 0
    pairs = {split: _match_files(root, split, labeled, result.problems) for split in list_splits(root)}
    if not pairs:
        raise InputError(f"{root}: has no train/, val/ or test/ with images/")
    _check_metadata(root, result.problems)
    tasks = [
        (pair, number % max(1, -(-len(found) // MAX_THUMBNAILS)) == 0)
        for found in pairs.values()
        for number, pair in enumerate(found)
    ]
    splits = [split for split, found in pairs.items() for _ in found]
    contents: dict[str, list[_Contents]] = {}
    shrunken, names = [], []
    inspections = map_on_cores(partial(_inspect, root, result.info), tasks)
    for number, ((problems, found), (pair, _), split) in enumerate(zip(inspections, tasks, splits, strict=True)):
        result.problems += problems
        if found:
            contents.setdefault(split, []).append(found)
            shrunken.append(found.shrunken)
            names.append((split, pair.stem))
            if found.thumbnail is not None:
                result.thumbnails.append(Thumbnail(f"{split}/{pair.stem}", found.thumbnail))
        if report:
            report(number + 1, len(tasks))
    result.splits = {split: _summarize(each, result.info) for split, each in contents.items()}
    for first, second, correlation in find_duplicates(shrunken, [split for split, _ in names]):
        other = "/".join(names[second])
        message = f"looks like {other} (correlation {correlation:.2f}): a leak"
        result.problems.append(Problem("/".join(names[first]), message))
    return result


def _match_files(root: Path, split: str, labeled: bool, problems: list[Problem]) -> list[Pair]:
    """Lists the pairs of a split, and adds files without a partner to the problems unless there are no masks."""
    folders = {"images": find_images(root, split), "masks": find_masks(root, split)}
    masked = labeled or folders["masks"].is_dir()
    found: list[dict[str, Path]] = []
    for kind, folder in folders.items() if masked else (("images", folders["images"]),):
        by_stem: dict[str, Path] = {}
        if not folder.is_dir():
            problems.append(Problem(f"{split}/{kind}", "no such folder"))
        for path in list_images(folder) if folder.is_dir() else []:
            if other := by_stem.get(path.stem):
                problems.append(Problem(f"{split}/{kind}/{path.name}", f"has the same stem as {other.name}"))
            by_stem[path.stem] = path
        found.append(by_stem)
    if not masked:
        return [Pair(stem, path, None) for stem, path in sorted(found[0].items())]
    images, masks = found
    for stem in sorted(images.keys() ^ masks.keys()):
        path, partner = (images[stem], "mask") if stem in images else (masks[stem], "image")
        problems.append(Problem(str(path.relative_to(root)), f"has no {partner} of the same name"))
    if not images:
        problems.append(Problem(split, "the split is empty"))
    return [Pair(stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())]


def _check_metadata(root: Path, problems: list[Problem]) -> None:
    splits_of: dict[str, set[str]] = {}
    for name, row in load_metadata(root).items():
        if not (root / name).is_file():
            problems.append(Problem("metadata.jsonl", f"{name} is missing"))
        if row.get("parent") is not None:
            splits_of.setdefault(str(row["parent"]), set()).add(name.split("/")[0])
    for parent, splits in sorted(splits_of.items()):
        if len(splits) > 1:
            message = f"parent {parent} has images in {' and '.join(sorted(splits))}: a leak"
            problems.append(Problem("metadata.jsonl", message))


def _inspect(root: Path, info: DatasetInfo, task: tuple[Pair, bool]) -> tuple[list[Problem], _Contents | None]:
    pair, with_thumbnail = task
    problems: list[Problem] = []
    image: NDArray[np.uint8] | None = None
    mask: NDArray[np.uint8] | None = None
    with _collect_errors(root, pair.image, problems):
        image = load_image(pair.image)
    if pair.mask is not None:
        with _collect_errors(root, pair.mask, problems):
            mask = load_mask(pair.mask, info)
            if image is not None and image.shape[:2] != mask.shape:
                size = f"{mask.shape[1]}x{mask.shape[0]}, but its image is {image.shape[1]}x{image.shape[0]}"
                problems.append(Problem(str(pair.mask.relative_to(root)), f"the mask is {size}"))
    elif image is not None:
        mask = np.full(image.shape[:2], info.ignore_index, np.uint8)
    if mask is not None and pair.instances is not None:
        with _collect_errors(root, pair.instances, problems):
            load_instances(pair, mask.shape)
    if problems or image is None or mask is None:
        return problems, None
    counts = np.bincount(mask.ravel(), minlength=256)
    gray = image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8)
    return problems, _Contents(
        size=(mask.shape[1], mask.shape[0]),
        counts=counts,
        intensity=np.bincount(gray.ravel(), minlength=256),
        island_areas=[
            compute_island_areas(mask == index) if counts[index] else np.zeros(0, np.int64)
            for index in range(1, info.num_classes)
        ],
        shrunken=shrink_image(image),
        thumbnail=build_thumbnail(image, mask, info.palette) if with_thumbnail else None,
    )


@contextmanager
def _collect_errors(root: Path, path: Path, problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(Problem(str(path.relative_to(root)), str(error).removeprefix(f"{path}: ")))


def _summarize(contents: list[_Contents], info: DatasetInfo) -> SplitSummary:
    counts = np.sum([each.counts for each in contents], axis=0)
    island_areas = map(np.concatenate, zip(*(each.island_areas for each in contents), strict=True))
    return SplitSummary(
        num_images=len(contents),
        class_pixels=counts[: info.num_classes],
        ignored_pixels=int(counts[info.ignore_index]),
        intensity=np.sum([each.intensity for each in contents], axis=0),
        sizes=dict(Counter(each.size for each in contents)),
        island_areas=[np.zeros(0, np.int64), *island_areas][: info.num_classes],
    )

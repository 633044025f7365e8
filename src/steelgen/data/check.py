"""Is a dataset folder sound, and what is in it? Every file is opened once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import (
    DatasetInfo,
    find_images,
    list_images,
    list_splits,
    load_dataset_info,
    load_mask,
    load_metadata,
)
from steelgen.data.images import load_image
from steelgen.data.instances import load_instance_ids
from steelgen.data.islands import compute_island_areas
from steelgen.data.pool import map_on_cores
from steelgen.data.sheets import build_thumbnail
from steelgen.errors import InputError

MAX_THUMBNAILS = 24
"""Overlays kept of each split."""


class Problem(NamedTuple):
    """Something that has to be mended."""

    file: str
    message: str


class Thumbnail(NamedTuple):
    """A small overlay, for contact sheet and page."""

    caption: str
    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""


@dataclass
class SplitSummary:
    """What the sound pairs of one split hold."""

    num_images: int
    class_pixels: NDArray[np.int64]
    """(num_classes,)."""
    ignored_pixels: int
    intensity: NDArray[np.int64]
    """(256,) pixels of each gray level."""
    sizes: dict[tuple[int, int], int]
    """Images of each (width, height)."""
    island_areas: list[NDArray[np.int64]]
    """Areas in px of the connected regions of each class; none for class 0."""

    @property
    def num_pixels(self) -> int:
        """All pixels, ignored ones included."""
        return int(self.class_pixels.sum()) + self.ignored_pixels

    def share(self, class_index: int) -> float:
        """The share of a class in all pixels, 0-1."""
        return float(self.class_pixels[class_index]) / max(self.num_pixels, 1)

    @property
    def mean_intensity(self) -> float:
        """Mean gray level, 0-255."""
        return float((self.intensity * np.arange(256)).sum() / max(self.intensity.sum(), 1))


@dataclass
class CheckReport:
    """What `check_dataset` found."""

    root: Path
    info: DatasetInfo
    problems: list[Problem] = field(default_factory=list)
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    thumbnails: list[Thumbnail] = field(default_factory=list)


class _Inspection(NamedTuple):
    """What is kept of one pair after its files are closed."""

    problems: list[Problem]
    size: tuple[int, int] = (0, 0)
    counts: NDArray[np.int64] | None = None
    intensity: NDArray[np.int64] | None = None
    island_areas: list[NDArray[np.int64]] | None = None
    shrunken: NDArray[np.float32] | None = None
    thumbnail: NDArray[np.uint8] | None = None


def check_dataset(root: Path, report: Callable[[int, int], None] | None = None) -> CheckReport:
    """Opens every image, mask and instance map of a dataset folder.

    Args:
        root: a dataset folder.
        report: told (done, total) as the work goes on.

    Returns:
        problems (pairs, sizes, indices, unreadable files, metadata of files that are not there, parents in two splits,
        near-duplicates across splits), and what the sound pairs hold.

    Raises:
        InputError: if `root` is no dataset folder or its dataset.json or metadata.jsonl cannot be read.
    """
    result = CheckReport(root, load_dataset_info(root))
    labeled = result.info.num_classes > 0
    pairs = {split: _match_files(root, split, labeled, result.problems) for split in list_splits(root)}
    if not pairs:
        raise InputError(f"{root}: has no train/, val/ or test/ with images/")
    _check_metadata(root, result.problems)
    tasks = [
        (split, stem, files, number % max(1, -(-len(found) // MAX_THUMBNAILS)) == 0)
        for split, found in pairs.items()
        for number, (stem, files) in enumerate(found.items())
    ]
    inspections = map_on_cores(partial(_inspect, root, result.info), tasks)
    shrunken, names = [], []
    for number, ((split, stem, _, _), seen) in enumerate(zip(tasks, inspections, strict=True)):
        result.problems += seen.problems
        if seen.counts is not None:
            _add(result, split, seen)
        if seen.thumbnail is not None:
            result.thumbnails.append(Thumbnail(f"{split}/{stem}", seen.thumbnail))
        if seen.shrunken is not None:
            shrunken.append(seen.shrunken)
            names.append((split, stem))
        if report:
            report(number + 1, len(tasks))
    for first, second, correlation in find_duplicates(shrunken, [split for split, _ in names]):
        other = "/".join(names[second])
        result.problems.append(
            Problem("/".join(names[first]), f"looks like {other} (correlation {correlation:.2f}): a leak")
        )
    return result


def _match_files(root: Path, split: str, labeled: bool, problems: list[Problem]) -> dict[str, tuple[Path, Path | None]]:
    """{stem: (image, mask)} of a split; what lacks its partner is a problem, unless there are no masks to be."""
    found: list[dict[str, Path]] = []
    masked = labeled or (root / split / "masks").is_dir()
    for kind in ("images", "masks") if masked else ("images",):
        folder = find_images(root, split) if kind == "images" else root / split / kind
        by_stem: dict[str, Path] = {}
        if not folder.is_dir():
            problems.append(Problem(f"{split}/{kind}", "no such folder"))
        for path in list_images(folder) if folder.is_dir() else []:
            if path.stem in by_stem:
                problems.append(
                    Problem(f"{split}/{kind}/{path.name}", f"has the same stem as {by_stem[path.stem].name}")
                )
            by_stem[path.stem] = path
        found.append(by_stem)
    if not masked:
        return {stem: (path, None) for stem, path in sorted(found[0].items())}
    images, masks = found
    for stem in sorted(images.keys() ^ masks.keys()):
        path, other = (images[stem], "mask") if stem in images else (masks[stem], "image")
        problems.append(Problem(str(path.relative_to(root)), f"has no {other} of the same name"))
    if not images:
        problems.append(Problem(split, "the split is empty"))
    return {stem: (images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())}


def _check_metadata(root: Path, problems: list[Problem]) -> None:
    splits_of: dict[str, set[str]] = {}
    for name, row in load_metadata(root).items():
        if not (root / name).is_file():
            problems.append(Problem("metadata.jsonl", f"names {name}, which is not there"))
        if row.get("parent") is not None:
            splits_of.setdefault(str(row["parent"]), set()).add(name.split("/")[0])
    for parent, splits in sorted(splits_of.items()):
        if len(splits) > 1:
            problems.append(
                Problem("metadata.jsonl", f"parent {parent} has images in {' and '.join(sorted(splits))}: a leak")
            )


_Task = tuple[str, str, tuple[Path, Path | None], bool]


def _inspect(root: Path, info: DatasetInfo, task: _Task) -> _Inspection:
    split, stem, (image_path, mask_path), wants_thumbnail = task
    problems: list[Problem] = []
    image: NDArray[np.uint8] | None = None
    mask: NDArray[np.uint8] | None
    try:
        image = load_image(image_path)
    except InputError as error:
        problems.append(_problem(root, image_path, error))
    if mask_path is None:
        mask = None if image is None else np.full(image.shape[:2], info.ignore_index, np.uint8)
    else:
        mask = _load_mask(root, mask_path, info, problems)
    if mask_path is not None and image is not None and mask is not None and image.shape[:2] != mask.shape:
        size = f"{mask.shape[1]}x{mask.shape[0]}, its image {image.shape[1]}x{image.shape[0]}"
        problems.append(Problem(str(mask_path.relative_to(root)), f"is {size}"))
    instances_path = root / split / "instances" / f"{stem}.png"
    if mask is not None and instances_path.is_file():
        try:
            shape = load_instance_ids(instances_path).shape
            if shape != mask.shape:
                problems.append(
                    Problem(str(instances_path.relative_to(root)), f"is {shape[1]}x{shape[0]}, not its mask's size")
                )
        except InputError as error:
            problems.append(_problem(root, instances_path, error))
    if problems or image is None or mask is None:
        return _Inspection(problems)
    counts = np.bincount(mask.ravel(), minlength=256)
    gray = image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8)
    return _Inspection(
        problems,
        size=(mask.shape[1], mask.shape[0]),
        counts=counts,
        intensity=np.bincount(gray.ravel(), minlength=256),
        island_areas=[
            compute_island_areas(mask == index) if counts[index] else np.zeros(0, np.int64)
            for index in range(1, info.num_classes)
        ],
        shrunken=shrink_image(image),
        thumbnail=build_thumbnail(image, mask, info.palette) if wants_thumbnail else None,
    )


def _load_mask(root: Path, path: Path, info: DatasetInfo, problems: list[Problem]) -> NDArray[np.uint8] | None:
    try:
        return load_mask(path, info)
    except InputError as error:
        problems.append(_problem(root, path, error))
        return None


def _add(result: CheckReport, split: str, seen: _Inspection) -> None:
    assert seen.counts is not None
    assert seen.intensity is not None
    assert seen.island_areas is not None
    num_classes = result.info.num_classes
    summary = result.splits.setdefault(
        split,
        SplitSummary(
            0, np.zeros(num_classes, np.int64), 0, np.zeros(256, np.int64), {}, [np.zeros(0, np.int64)] * num_classes
        ),
    )
    summary.num_images += 1
    summary.class_pixels += seen.counts[:num_classes]
    summary.ignored_pixels += int(seen.counts[result.info.ignore_index])
    summary.intensity += seen.intensity
    summary.sizes[seen.size] = summary.sizes.get(seen.size, 0) + 1
    for index, areas in enumerate(seen.island_areas, start=1):
        summary.island_areas[index] = np.concatenate([summary.island_areas[index], areas])


def _problem(root: Path, path: Path, error: InputError) -> Problem:
    name = str(path.relative_to(root))
    return Problem(name, str(error).removeprefix(f"{path}: "))

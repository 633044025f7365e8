"""Copies of a dataset folder: with new splits, or one with and one without a class."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import (
    DatasetInfo,
    Pair,
    index_by_stem,
    list_pairs,
    list_splits,
    load_dataset_info,
    load_metadata,
    load_pair,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.splits import assign_splits, parent_of
from steelgen.errors import InputError
from steelgen.files import new_folder


class Leak(NamedTuple):
    """Near-duplicate images in different splits."""

    first: str
    second: str
    correlation: float


def split_by_presence(
    root: Path, out: Path, class_name: str, report: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, int]]:
    """Copies the images of a dataset folder into two, OUT/with and OUT/without, by whether a class occurs in the mask.

    The splits stay the same. They are the two sides of a translation from sound to defective material.

    Returns:
        {"with" or "without": {split: number of images}}.

    Raises:
        InputError: if the dataset is invalid, has no such class, one side would be empty, or `out` is in use.
    """
    info, metadata = load_dataset_info(root), load_metadata(root)
    if class_name not in info.class_names:
        raise InputError(f"{root}: has no class {class_name!r} (has: {', '.join(info.class_names) or 'no masks'})")
    label = info.class_names.index(class_name)
    pairs = [(split, pair) for split in list_splits(root) for pair in list_pairs(root, split)]
    rows: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    counts: dict[str, dict[str, int]] = {"with": {}, "without": {}}
    with new_folder(out) as working:
        for number, (split, pair) in enumerate(pairs):
            side = "with" if (load_pair(pair, info)[1] == label).any() else "without"
            name = copy_pair(pair, info, working / side, split)
            row = metadata.get(f"{split}/images/{pair.image.name}", {})
            rows[side].append({"parent": parent_of(pair.stem), **row, "file_name": name})
            counts[side][split] = counts[side].get(split, 0) + 1
            if report:
                report(number + 1, len(pairs))
        for side, found in rows.items():
            if not found:
                raise InputError(f"{root}: no image is {side} {class_name!r}")
            save_metadata(working / side, found)
            save_dataset_info(working / side, info)
    return counts


def copy_pair(pair: Pair, info: DatasetInfo, root: Path, split: str) -> str:
    """Copies image, mask and instances into a split of another dataset folder; returns the image's path in it."""
    (root / split / "images").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pair.image, root / split / "images" / pair.image.name)
    # Masks are converted, not copied: ISDM's have 255 for class 1, which means "ignore" with a dataset.json.
    if pair.mask:
        save_mask(root / split / "masks" / f"{pair.stem}.png", load_pair(pair, info)[1], info.palette)
    if pair.instances and pair.instances.is_file():
        (root / split / "instances").mkdir(exist_ok=True)
        shutil.copyfile(pair.instances, root / split / "instances" / pair.instances.name)
    return f"{split}/images/{pair.image.name}"


def resplit_dataset(
    root: Path,
    out: Path,
    fractions: dict[str, float],
    split_by: str = "parent",
    stratify: bool = False,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, int], list[Leak]]:
    """Copies a dataset folder with new splits, keeping groups of images together.

    Args:
        root: dataset folder.
        fractions: {split: share of the images}, see `assign_splits`.
        split_by: `parent` (from metadata.jsonl, or from tile names NAME_x0_y0_x1_y1), or a metadata column.
        stratify: apply the fractions to the pixels of each class, too.

    Returns:
        ({split: number of images}, near-duplicates across the new splits).

    Raises:
        InputError: if the dataset is invalid, an image has no value for `split_by`, images of different splits have the
            same name, a split would be empty, or `out` is in use.
    """
    info, metadata = load_dataset_info(root), load_metadata(root)
    pairs = [(split, pair) for split in list_splits(root) for pair in list_pairs(root, split)]
    index_by_stem(pair.image for _, pair in pairs)  # raises on equal stems, which may end up in the same split
    rows, groups, class_pixels, shrunken = [], [], [], []
    for number, (split, pair) in enumerate(pairs):
        row = {"parent": parent_of(pair.stem), **metadata.get(f"{split}/images/{pair.image.name}", {})}
        if row.get(split_by) is None:
            raise InputError(f"{pair.image}: has no {split_by!r} to split by (has: {', '.join(row)})")
        rows.append(row)
        groups.append(str(row[split_by]))
        image, mask = load_pair(pair, info)
        class_pixels.append(np.bincount(mask.ravel(), minlength=256)[: info.num_classes])
        shrunken.append(shrink_image(image))
        if report:
            report(number + 1, len(pairs))
    splits = assign_splits(groups, fractions, seed, np.array(class_pixels, float) if stratify else None)
    save_splits(out, info, [pair for _, pair in pairs], rows, splits)
    names = [f"{split}/{pair.stem}" for (_, pair), split in zip(pairs, splits, strict=True)]
    leaks = [Leak(names[first], names[second], value) for first, second, value in find_duplicates(shrunken, splits)]
    return {split: splits.count(split) for split in dict.fromkeys(sorted(splits))}, leaks


def save_splits(out: Path, info: DatasetInfo, pairs: list[Pair], rows: list[dict[str, Any]], splits: list[str]) -> None:
    """Copies pairs into the splits of a new dataset folder.

    Args:
        info: classes of the masks.
        rows: metadata of each pair; `file_name` is set to the new one.
        splits: split of each pair.

    Raises:
        InputError: if `out` is in use.
    """
    with new_folder(out) as working:
        for row, pair, split in zip(rows, pairs, splits, strict=True):
            row["file_name"] = copy_pair(pair, info, working, split)
        save_metadata(working, rows)
        save_dataset_info(working, info)

"""A dataset folder → the same micrographs in other splits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import (
    list_pairs,
    list_splits,
    load_dataset_info,
    load_metadata,
    load_pair,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.importers.sources import parent_of
from steelgen.data.splits import assign_splits
from steelgen.errors import InputError
from steelgen.files import new_folder


class Leak(NamedTuple):
    """Two images in different splits that look alike."""

    first: str
    second: str
    correlation: float


def resplit_dataset(
    root: Path,
    out: Path,
    fractions: dict[str, float],
    split_by: str = "parent",
    stratify: bool = False,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, int], list[Leak]]:
    """Copies a dataset folder with new splits; groups of images stay together.

    Args:
        root: a dataset folder.
        fractions: {split: share of the images}, see `splits.assign_splits`.
        split_by: `parent` (from metadata.jsonl, else from tile names NAME_x0_y0_x1_y1), or a metadata column.
        stratify: share out the classes' pixels in the same fractions, too.

    Returns:
        ({split: number of images}, near-duplicates across the new splits).

    Raises:
        InputError: if the dataset cannot be used, an image lacks the column, two images of different splits have the
            same name, a split would be empty, or `out` is in use.
    """
    info, metadata = load_dataset_info(root), load_metadata(root)
    pairs = [(split, pair) for split in list_splits(root) for pair in list_pairs(root, split)]
    by_stem: dict[str, Path] = {}
    groups, class_pixels, shrunken = [], [], []
    for number, (split, pair) in enumerate(pairs):
        if pair.stem in by_stem:
            raise InputError(f"{pair.image}: {by_stem[pair.stem]} has the same name, and they may meet in one split")
        by_stem[pair.stem] = pair.image
        row = {"parent": parent_of(pair.stem), **metadata.get(f"{split}/images/{pair.image.name}", {})}
        if row.get(split_by) is None:
            raise InputError(f"{pair.image}: has no {split_by!r} to split by (has: {', '.join(row)})")
        groups.append(str(row[split_by]))
        image, mask = load_pair(pair, info)
        class_pixels.append(np.bincount(mask.ravel(), minlength=256)[: info.num_classes])
        shrunken.append(shrink_image(image))
        if report:
            report(number + 1, len(pairs))
    splits = assign_splits(groups, fractions, seed, np.array(class_pixels, float) if stratify else None)
    rows = []
    with new_folder(out) as working:
        for (old, pair), new in zip(pairs, splits, strict=True):
            for kind in ("images", "masks", "instances") if pair.mask else ("images",):
                (working / new / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pair.image, working / new / "images" / pair.image.name)
            # Masks are written anew: ISDM's hold 255 for class 1, which with a dataset.json means "ignore".
            if pair.mask:
                save_mask(working / new / "masks" / f"{pair.stem}.png", load_pair(pair, info)[1], info.palette)
            instances = root / old / "instances" / f"{pair.stem}.png"
            if instances.is_file():
                shutil.copyfile(instances, working / new / "instances" / instances.name)
            row = {"parent": parent_of(pair.stem), **metadata.get(f"{old}/images/{pair.image.name}", {})}
            rows.append({**row, "file_name": f"{new}/images/{pair.image.name}"})
        for folder in working.glob("*/instances"):
            if not any(folder.iterdir()):
                folder.rmdir()
        save_metadata(working, rows)
        save_dataset_info(working, info)
    names = [f"{split}/{pair.stem}" for (_, pair), split in zip(pairs, splits, strict=True)]
    leaks = [Leak(names[first], names[second], value) for first, second, value in find_duplicates(shrunken, splits)]
    return {split: splits.count(split) for split in dict.fromkeys(sorted(splits))}, leaks

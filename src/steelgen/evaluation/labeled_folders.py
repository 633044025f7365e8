"""Labeling of folders by a trained segmenter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steelgen.data.folder import (
    find_images,
    index_by_stem,
    list_images,
    list_kept,
    list_pairs,
    list_splits,
    load_dataset_info,
    load_metadata,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.images import load_image, save_image, to_channels
from steelgen.data.resplit import copy_pair
from steelgen.data.unlabeled import list_unlabeled
from steelgen.errors import InputError
from steelgen.evaluation.labeler import Labeler, label_micrograph
from steelgen.files import new_folder

PREDICTED = "predicted"
"""Value of `labels` in metadata.jsonl for micrographs whose masks a segmenter has predicted."""


def label_folder(
    labeler: Labeler,
    images: Path,
    output_dir: Path,
    report_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Labels every image of a folder, or of each split of a dataset folder, which gives a dataset folder.

    Writes masks/ (palette PNGs of class indices), confidence/ (gray PNGs, 255 × confidence, see `label_micrograph`),
    dataset.json with the segmenter's classes, and copies of the images in images/; masks of the dataset folder are not
    read, and images in rejects.txt are left out.

    Args:
        labeler: from `load_labeler`.
        images: a folder of images of any size, or a dataset folder.
        output_dir: must be new or empty.
        report_progress: called with (images done, total images).

    Returns:
        Number of images.

    Raises:
        InputError: if the folder is missing or empty, an image is unreadable, or two images have the same stem.
    """
    splits = [split for split in list_splits(images) if find_images(images, split) != images]
    paths = {split: list_kept(find_images(images, split)) for split in splits} or {"": list_images(images)}
    total, done = sum(map(len, paths.values())), 0
    if not total:
        raise InputError(f"{images}: contains no images")
    for each in paths.values():
        index_by_stem(each)  # raises if two have the same
    with new_folder(output_dir) as folder:
        save_dataset_info(folder, labeler.info)
        for split, each in paths.items():
            for path in each:
                _save_labeled(labeler, path, folder / split)
                done += 1
                if report_progress:
                    report_progress(done, total)
        rows = {str(Path(name).with_suffix(".png")): row for name, row in load_metadata(images).items()}
        if kept := [{**row, "file_name": name} for name, row in rows.items() if (folder / name).is_file()]:
            save_metadata(folder, kept)
    return total


def complete_dataset(
    labeler: Labeler,
    dataset: Path,
    unlabeled: Path,
    out: Path,
    report_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes a dataset folder of the micrographs of another, and of unlabeled ones with predicted masks in train/.

    Rows of metadata.jsonl tell them apart: those of predicted masks have `"labels": "predicted"`.

    Args:
        labeler: trained on `dataset`.
        dataset: dataset folder with masks; all splits are copied.
        unlabeled: see `list_unlabeled`.
        out: folder to fill; confidence maps are in train/confidence/.
        report_progress: called with (images done, total images).

    Returns:
        Number of predicted masks.

    Raises:
        InputError: see `list_unlabeled`; also if a file is unreadable.
    """
    paths, info = list_unlabeled(dataset, unlabeled), load_dataset_info(dataset)
    known, further = load_metadata(dataset), load_metadata(unlabeled)
    rows: list[dict[str, Any]] = []
    for split in list_splits(dataset):
        for pair in list_pairs(dataset, split):
            name = copy_pair(pair, info, out, split)
            rows.append({**known.get(pair.image.relative_to(dataset).as_posix(), {}), "file_name": name})
    for number, path in enumerate(paths):
        name = f"train/images/{_save_labeled(labeler, path, out / 'train')}"
        row = further.get(path.relative_to(unlabeled).as_posix(), {})
        rows.append({**row, "file_name": name, "labels": PREDICTED})
        if report_progress:
            report_progress(number + 1, len(paths))
    save_metadata(out, rows)
    save_dataset_info(out, info)
    return len(paths)


def list_predicted(folder: Path) -> set[str]:
    """Returns the stems of the micrographs with predicted masks in a dataset folder of `complete_dataset`."""
    return {Path(name).stem for name, row in load_metadata(folder).items() if row.get("labels") == PREDICTED}


def _save_labeled(labeler: Labeler, path: Path, folder: Path) -> str:
    """Writes images/, masks/ and confidence/ of one image as PNG; returns the file name."""
    image = load_image(path)
    mask, confidence = label_micrograph(labeler, to_channels(image, labeler.config.in_channels))
    name = f"{path.stem}.png"
    save_mask(folder / "masks" / name, mask, labeler.info.palette)
    save_image(folder / "confidence" / name, np.rint(255 * confidence).astype(np.uint8))
    save_image(folder / "images" / name, image)
    return name

"""nnU-Net's raw folder: dataset.json, imagesTr/CASE_0000.png, labelsTr/CASE.png, imagesTs/, labelsTs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import IMAGE_SUFFIXES
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import build_set, list_files
from steelgen.errors import InputError
from steelgen.files import load_json


def read_nnunet(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads 2D cases with one file each; pixels with the label "ignore" are ignored.

    imagesTs with labelsTs become the test split; without labels they are skipped. The first fold of splits_final.json,
    if it exists, becomes train and val.
    """
    labels, ending = _read_labels(load_json(src / "dataset.json"), src / "dataset.json")
    lookup = np.full(256, 254, np.uint8)
    names = [name for name, value in sorted(labels.items(), key=lambda item: item[1]) if name != "ignore"]
    for index, name in enumerate(names):
        lookup[labels[name]] = index
    if "ignore" in labels:
        lookup[labels["ignore"]] = 255
    if not (src / "labelsTr").is_dir():
        raise InputError(f"{src}: has no labelsTr/")
    cases = [(*case, "train") for case in _list_cases(src, "Tr", ending)]
    if (src / "labelsTs").is_dir():
        cases += [(*case, "test") for case in _list_cases(src, "Ts", ending)]
    if not cases:
        raise InputError(f"{src / 'labelsTr'}: contains no *{ending}")
    validation = _read_fold(src / "splits_final.json")
    has_splits = validation or any(split == "test" for *_, split in cases)
    images = [
        AnnotatedImage(
            image,
            stem,
            masks=(IndexMask(label, lookup),),
            split=("val" if split == "train" and stem in validation else split) if has_splits else None,
        )
        for stem, image, label, split in cases
    ]
    return build_set(src, names, images)


def _read_labels(described: Any, path: Path) -> tuple[dict[str, int], str]:
    """Returns {label: value} and the suffix of all files."""
    if not isinstance(described, dict) or not isinstance(described.get("labels"), dict):
        raise InputError(f"{path}: has no labels")
    if "dataset" in described:
        raise InputError(f"{path}: a list of files in 'dataset' is not supported; use imagesTr/ and labelsTr/")
    ending = described.get("file_ending")
    if ending not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: file_ending {ending!r:.40} must be one of {', '.join(IMAGE_SUFFIXES)}")
    labels: dict[str, int] = {}
    for name, value in described["labels"].items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255 or not name.strip():
            raise InputError(f"{path}: label {name!r:.40} is {value!r:.40}, must be an integer from 0 to 255")
        if value in labels.values():
            raise InputError(f"{path}: label {name!r:.40} has the same value {value} as another label")
        labels[name] = value
    if not any(name != "ignore" for name in labels):
        raise InputError(f"{path}: labels has no class")
    return labels, ending


def _list_cases(src: Path, end: str, ending: str) -> list[tuple[str, Path, Path]]:
    """Lists (case, image, label) of each label file."""
    images: dict[str, list[Path]] = {}
    for path in list_files(src / f"images{end}", (ending,)):
        stem, _, channel = path.stem.rpartition("_")
        if not (stem and len(channel) == 4 and channel.isascii() and channel.isdigit()):
            raise InputError(f"{path}: must be named CASE_0000{ending}")
        images.setdefault(stem, []).append(path)
    cases = []
    for label in list_files(src / f"labels{end}", (ending,)):
        files = images.pop(label.stem, [])
        if len(files) != 1:
            raise InputError(f"{label}: has {len(files)} images in images{end}/, must have 1")
        cases.append((label.stem, files[0], label))
    for files in images.values():
        raise InputError(f"{files[0]}: has no label in labels{end}/")
    return cases


def _read_fold(path: Path) -> set[str]:
    """Returns the validation cases of the first fold; empty without the file."""
    if not path.is_file():
        return set()
    folds = load_json(path)
    first = folds[0] if isinstance(folds, list) and folds else None
    cases = first.get("val") if isinstance(first, dict) else None
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise InputError(f"{path}: must be a list of folds with train and val")
    return set(cases)

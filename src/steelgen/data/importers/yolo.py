"""YOLO segmentation: data.yaml, images/ and, in the same tree, labels/ with one polygon per line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet
from steelgen.data.folder import IMAGE_SUFFIXES, SPLITS
from steelgen.data.images import load_image_size
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon_from_flat
from steelgen.data.importers.sources import SPLIT_NAMES, build_set, error_location, list_files, read_lines
from steelgen.errors import InputError, first_line
from steelgen.files import load_text

_MAX_YAML = 1_000_000
"""Largest size of a data.yaml in bytes."""


def read_yolo(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads data.yaml (`src` itself, or in it; or its only *.yaml), or images/, labels/ and classes.txt.

    Images without a text file, or with an empty one, are all background, as in Ultralytics.
    """
    root = src.parent if src.is_file() else src
    description = src if src.is_file() else _find_description(src)
    if description is not None:
        names, folders = _read_description(description)
    else:
        names, folders = _read_names(root), {None: [root / "images"]}
    class_names = collect_names(dict.fromkeys(names, description or root), options.class_names, ordered=True)
    images = [
        _read_image(path, split, names, class_names)
        for split, entries in folders.items()
        for entry in entries
        for path in _list_images(entry)
    ]
    return build_set(root, class_names, images, description)


def _find_description(src: Path) -> Path | None:
    if not src.is_dir():
        raise InputError(f"{src}: no such file or folder")
    if (src / "data.yaml").is_file():
        return src / "data.yaml"
    found = sorted(path for suffix in ("*.yaml", "*.yml") for path in src.glob(suffix))
    if len(found) > 1:
        raise InputError(f"{src}: has {len(found)} YAML files; give the path of the one that describes the set")
    return found[0] if found else None


def _read_description(path: Path) -> tuple[list[str], dict[str | None, list[Path]]]:
    """Reads class names in the order of their ids, and the folders or lists of images of each split."""
    import yaml

    try:
        if path.stat().st_size > _MAX_YAML:
            raise InputError(f"{path}: has {path.stat().st_size:,} bytes, the limit is {_MAX_YAML:,}")
        values = yaml.safe_load(load_text(path))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping with names, train and val")
    names = values.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"{path}: names must be a list of names or a mapping from 0, 1, …, got {names!r:.80}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: names contains {name!r:.40} twice")
    stated, bases = values.get("path"), [path.parent]
    # A path on another machine is ignored.
    if isinstance(stated, str) and "\0" not in stated and _is_below(path.parent / stated, path.parent):
        bases.insert(0, path.parent / stated)
    folders: dict[str | None, list[Path]] = {}
    for key in SPLITS:
        entries = values.get(key)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            found = _resolve(entry, bases, path)
            # Ultralytics requires a val split; if it repeats another split, it is skipped.
            if found not in [other for others in folders.values() for other in others]:
                folders.setdefault(key, []).append(found)
    return names, folders


def _is_below(path: Path, home: Path) -> bool:
    return path.resolve().is_relative_to(home.resolve())


def _resolve(entry: Any, bases: list[Path], path: Path) -> Path:
    if not isinstance(entry, str) or "\0" in entry:
        raise InputError(f"{path}: {entry!r:.80} must be a folder or list of images")
    # Some tools write ../train/images for a folder beside data.yaml.
    for candidate in (base / text for base in bases for text in (entry, entry.removeprefix("../"))):
        if candidate.exists() and _is_below(candidate, path.parent):
            return candidate
    raise InputError(f"{path}: no {entry!r:.120} below {path.parent}")


def _read_names(root: Path) -> list[str]:
    if not (root / "images").is_dir() or not (root / "classes.txt").is_file():
        raise InputError(f"{root}: has neither data.yaml nor images/ and classes.txt")
    return list(dict.fromkeys(line for line in read_lines(root / "classes.txt") if line))


def _list_images(entry: Path) -> list[Path]:
    """Lists the images below a folder, or those in a text file, one per line."""
    if entry.is_dir():
        return list_files(entry)
    if entry.suffix.lower() in IMAGE_SUFFIXES:
        return [entry]
    found = []
    for line in filter(None, read_lines(entry)):
        # CVAT writes data/images/train/a.png for images/train/a.png.
        candidates = [entry.parent / text for text in (line, line.removeprefix("data/")) if "\0" not in text]
        path = next((each for each in candidates if each.is_file() and _is_below(each, entry.parent)), None)
        if path is None:
            raise InputError(f"{entry}: no image {line!r:.120} below {entry.parent}")
        found.append(path)
    return found


def _read_image(path: Path, split: str | None, names: list[str], class_names: list[str]) -> AnnotatedImage:
    height, width = load_image_size(path)
    annotations = []
    labels = _find_labels(path)
    for number, line in enumerate(read_lines(labels) if labels.is_file() else (), start=1):
        if line:
            with error_location(f"{labels}:{number}"):
                class_index, ring = _read_line(line.split(), names, class_names)
            annotations.append(annotate(class_index, ring * (width, height)))
    split = split or next((SPLIT_NAMES[part] for part in path.parts[::-1] if part in SPLIT_NAMES), None)
    return AnnotatedImage(path, annotations=tuple(annotations), split=split, size=(height, width))


def _find_labels(image: Path) -> Path:
    """Returns the label file as Ultralytics does: with the last images/ replaced by labels/, or beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_line(words: list[str], names: list[str], class_names: list[str]) -> tuple[int, NDArray[np.float64]]:
    index = int(words[0]) if words[0].isascii() and words[0].isdigit() and len(words[0]) < 10 else -1
    if not 0 <= index < len(names):
        raise InputError(f"class {words[0]!r:.40} must be from 0 to {len(names) - 1}")
    if len(words) == 5:
        raise InputError("is a box (class, center, size); masks need polygons, as in YOLO segmentation")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError as error:
        raise InputError(first_line(error)) from None
    if len(numbers) % 2 or not all(-1 <= number <= 2 for number in numbers):
        raise InputError("must be a class and pairs of x and y relative to the image size")
    return find_index(names[index], class_names), build_polygon_from_flat(numbers)

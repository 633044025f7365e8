"""YOLO segmentation: data.yaml, images/ and, in the same tree, labels/ with a polygon a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import IMAGE_SUFFIXES, DatasetInfo
from steelgen.data.images import load_image_size
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon
from steelgen.data.importers.sources import SPLIT_NAMES, list_files, parent_of, read_lines
from steelgen.errors import InputError, first_line
from steelgen.files import load_text

_MAX_YAML = 1_000_000
"""Bytes of a data.yaml; names of classes and folders need no more."""


def read_yolo(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads data.yaml (another *.yaml, where it is the only one), or images/, labels/ and classes.txt.

    An image without a text file, or with an empty one, is all background, as for Ultralytics.

    Args:
        src: the folder, or its data.yaml.

    Raises:
        InputError: if data.yaml cannot be read, a folder is not there or outside, a line is no polygon or names an
            unknown class.
    """
    root = src.parent if src.is_file() else src
    description = src if src.is_file() else _find_description(src)
    if description is not None:
        names, folders = _read_description(description)
    else:
        names, folders = _read_names(root), {None: [root / "images"]}
    where = description or root
    class_names = collect_names(dict.fromkeys(names, where), options.class_names, ordered=True)
    images = []
    for split, entries in folders.items():
        for entry in entries:
            for path in _list_images(entry):
                images.append(_read_image(path, split, names, class_names))
    if not images:
        raise InputError(f"{where}: names no images")
    return AnnotatedSet(DatasetInfo(name=root.resolve().name, class_names=class_names), images)


def _find_description(src: Path) -> Path | None:
    if not src.is_dir():
        raise InputError(f"{src}: no such file or folder")
    if (src / "data.yaml").is_file():
        return src / "data.yaml"
    found = sorted(path for suffix in ("*.yaml", "*.yml") for path in src.glob(suffix))
    if len(found) > 1:
        raise InputError(f"{src}: {len(found)} YAML files; name the one that describes the set")
    return found[0] if found else None


def _read_description(path: Path) -> tuple[list[str], dict[str | None, list[Path]]]:
    """Class names in the order of their ids, and the folders or lists of images of each split."""
    import yaml

    try:
        if path.stat().st_size > _MAX_YAML:
            raise InputError(f"{path}: {path.stat().st_size:,} bytes are too many for a data.yaml")
        values = yaml.safe_load(load_text(path))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no mapping with names, train and val")
    names = values.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"{path}: names is {names!r:.80}, neither a list of names nor a mapping from 0, 1, …")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: names holds {next(name for name in names if names.count(name) > 1)!r:.40} twice")
    stated = values.get("path")
    home = path.parent.resolve()
    bases = [path.parent]
    # The path that another machine wrote is of no use here.
    if isinstance(stated, str) and "\0" not in stated and (path.parent / stated).resolve().is_relative_to(home):
        bases.insert(0, path.parent / stated)
    folders: dict[str | None, list[Path]] = {}
    for key in ("train", "val", "test"):
        entries = values.get(key)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            found = _resolve(entry, bases, path)
            # Ultralytics wants a val; where it is another split again, it is none.
            if found not in [other for others in folders.values() for other in others]:
                folders.setdefault(key, []).append(found)
    return names, folders


def _resolve(entry: Any, bases: list[Path], path: Path) -> Path:
    if not isinstance(entry, str) or "\0" in entry:
        raise InputError(f"{path}: {entry!r:.80} is no folder or list of images")
    home = path.parent.resolve()
    # Some tools write ../train/images for what lies beside data.yaml.
    for candidate in (base / text for base in bases for text in (entry, entry.removeprefix("../"))):
        if candidate.exists() and candidate.resolve().is_relative_to(home):
            return candidate
    raise InputError(f"{path}: there is no {entry!r:.120} below {path.parent}")


def _read_names(root: Path) -> list[str]:
    if not (root / "images").is_dir() or not (root / "classes.txt").is_file():
        raise InputError(f"{root}: has neither data.yaml nor images/ and classes.txt")
    return list(dict.fromkeys(line for line in read_lines(root / "classes.txt") if line))


def _list_images(entry: Path) -> list[Path]:
    """The images below a folder, or those that a text file names, one a line."""
    if entry.is_dir():
        return list_files(entry)
    if entry.suffix.lower() in IMAGE_SUFFIXES:
        return [entry]
    home = entry.parent.resolve()
    found = []
    for line in filter(None, read_lines(entry)):
        # CVAT writes data/images/train/a.png for what lies at images/train/a.png.
        candidates = [entry.parent / text for text in (line, line.removeprefix("data/")) if "\0" not in text]
        path = next((each for each in candidates if each.is_file() and each.resolve().is_relative_to(home)), None)
        if path is None:
            raise InputError(f"{entry}: no image {line!r:.120} below {entry.parent}")
        found.append(path)
    return found


def _read_image(path: Path, split: str | None, names: list[str], class_names: list[str]) -> AnnotatedImage:
    height, width = load_image_size(path)
    regions = []
    labels = _find_labels(path)
    for number, line in enumerate(read_lines(labels) if labels.is_file() else (), start=1):
        if not line:
            continue
        try:
            class_index, ring = _read_line(line.split(), names, class_names)
        except InputError as error:
            raise InputError(f"{labels}:{number}: {error}") from None
        is_instance = class_index not in (0, 255)
        regions.append(Annotation(class_index, (ring * (width, height),), is_instance=is_instance))
    return AnnotatedImage(
        path=path,
        stem=path.stem,
        parent=parent_of(path.stem),
        annotations=tuple(regions),
        split=split or next((SPLIT_NAMES[part] for part in path.parts[::-1] if part in SPLIT_NAMES), None),
        size=(height, width),
    )


def _find_labels(image: Path) -> Path:
    """As Ultralytics does: the last images/ in the path becomes labels/; else beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_line(words: list[str], names: list[str], class_names: list[str]) -> tuple[int, Any]:
    if not (words[0].isascii() and words[0].isdigit()) or int(words[0]) >= len(names):
        raise InputError(f"class {words[0]!r:.40} is none of 0 to {len(names) - 1}")
    if len(words) == 5:
        raise InputError("is a box (class, center, size); masks need the polygons of YOLO segmentation")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError as error:
        raise InputError(first_line(error)) from None
    if len(numbers) % 2 or not all(-1 <= number <= 2 for number in numbers):
        raise InputError("is not a class and pairs of x and y as shares of the image's width and height")
    ring = build_polygon(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return find_index(names[int(words[0])], class_names), ring

"""COCO: polygons, uncompressed and compressed run lengths, crowds, several categories, several instances.

One JSON file, or a folder with JSON files in it or in annotations/. Files named train, validation or test become
splits. Where several other files name the same image, each file is an annotator. `area` and `bbox` are never read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon_from_flat
from steelgen.data.importers.sources import SPLIT_NAMES, ImageIndex, list_files, parent_of
from steelgen.data.runlength import parse_counts
from steelgen.errors import InputError
from steelgen.files import load_json


def read_coco(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads COCO annotations; background is class 0, the categories follow in the order of their ids.

    Raises:
        InputError: if a file is not COCO, an id is missing or occurs twice, a region cannot be read, or an image is
            not there.
    """
    files = _list_json(src)
    root = src if src.is_dir() else src.parent
    documents = {path: load_json(path) for path in files}
    documents = {path: values for path, values in documents.items() if len(files) == 1 or _looks_like_coco(values)}
    if not documents:
        raise InputError(f"{src}: no JSON file with images, annotations and categories")
    names = _collect_categories(documents)
    # Annotation files also stand beside their images' folder: annotations/x.json, images/y.png.
    if src.is_file() and root.name == "annotations":
        root = root.parent
    index = ImageIndex(root, list_files(root))
    images: dict[Path, AnnotatedImage] = {}
    for path, values in documents.items():
        for image in _read_document(path, values, names, index, options):
            images[image.path] = _join(images.get(image.path), image, path)
    if not images:
        raise InputError(f"{src}: names no images")
    info = DatasetInfo(name=root.resolve().name, class_names=names)
    return AnnotatedSet(info, sorted(images.values(), key=lambda image: (image.stem, str(image.path))))


def _list_json(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    if not src.is_dir():
        raise InputError(f"{src}: no such file or folder")
    for folder in (src, src / "annotations"):
        files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
        if files:
            return files
    raise InputError(f"{src}: no JSON file in it or in its annotations/")


def _looks_like_coco(values: Any) -> bool:
    return isinstance(values, dict) and {"images", "annotations", "categories"} <= values.keys()


def _collect_categories(documents: dict[Path, Any]) -> list[str]:
    """Class names: background, then the categories; files may number theirs differently, so names are what counts."""
    ordered: list[tuple[int, str]] = []
    for path, values in documents.items():
        ordered += sorted(
            (_identity(category, path), _text(category, "name", path)) for category in _rows(values, "categories", path)
        )
    names = ["background"]
    for _, name in ordered:
        if name.lower() != "background" and name not in names:
            names.append(name)
    if len(names) > 255:
        raise InputError(f"{next(iter(documents))}: {len(names)} classes; a mask holds 255")
    return names


def _read_document(
    path: Path, values: Any, names: list[str], index: ImageIndex, options: ReadOptions
) -> list[AnnotatedImage]:
    stem = path.stem.lower().removeprefix("instances_")
    split = SPLIT_NAMES.get(stem)
    hint = stem if split else ""
    classes: dict[int, int] = {}
    for category in _rows(values, "categories", path):
        identity, name = _identity(category, path), _text(category, "name", path)
        if identity in classes:
            raise InputError(f"{path}: category id {identity} occurs twice")
        classes[identity] = 0 if name.lower() == "background" else names.index(name)
    regions: dict[int, list[Annotation]] = {}
    rows: dict[int, dict[str, Any]] = {}
    for row in _rows(values, "images", path):
        if (identity := _identity(row, path)) in rows:
            raise InputError(f"{path}: image id {identity} occurs twice")
        rows[identity] = row
    for row in _rows(values, "annotations", path):
        image_id, category_id = row.get("image_id"), row.get("category_id")
        if not isinstance(image_id, int) or image_id not in rows:
            raise InputError(f"{path}: annotation {row.get('id')!r:.40} has the unknown image_id {image_id!r:.40}")
        if not isinstance(category_id, int) or category_id not in classes:
            raise InputError(
                f"{path}: annotation {row.get('id')!r:.40} has the unknown category_id {category_id!r:.40}"
            )
        try:
            regions.setdefault(image_id, []).append(_read_region(row, classes[category_id], rows[image_id]))
        except InputError as error:
            raise InputError(f"{path}: annotation {row.get('id')!r:.40}: {error}") from None
    images = []
    for image_id, row in rows.items():
        name = _text(row, "file_name", path)
        found = index.require(name, path, options.skip_missing, hint)
        if found is None:
            continue
        images.append(
            AnnotatedImage(
                path=found,
                stem=found.stem,
                parent=parent_of(found.stem),
                annotations=tuple(regions.get(image_id, ())),
                split=split,
                size=_size(row, path),
            )
        )
    return images


def _read_region(row: dict[str, Any], class_index: int, image: dict[str, Any]) -> Annotation:
    segmentation = row.get("segmentation")
    is_instance = not row.get("iscrowd")
    if isinstance(segmentation, list):
        polygons = tuple(build_polygon_from_flat(numbers) for numbers in segmentation)
        return Annotation(class_index, polygons, is_instance=is_instance)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise InputError(f"segmentation is neither polygons nor run lengths: {segmentation!r:.60}")
    stated, counts = segmentation.get("size"), segmentation["counts"]
    if not isinstance(counts, list | str):
        raise InputError(f"counts are neither numbers nor text: {counts!r:.60}")
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or stated != [height, width]:
        raise InputError(
            f"run lengths of size {stated!r:.40}, but the image's height and width are {height!r:.40}, {width!r:.40}"
        )
    runs = parse_counts(counts)
    if runs.size and runs.sum(axis=1).max() > height * width:
        raise InputError(f"run lengths reach pixel {runs.sum(axis=1).max()} of {height * width}")
    return Annotation(class_index, runs=runs, is_instance=is_instance)


def _join(first: AnnotatedImage | None, second: AnnotatedImage, path: Path) -> AnnotatedImage:
    """Puts together what two files say about one image: they are two annotators."""
    named = replace(
        second,
        annotations=tuple(replace(annotation, annotator=path.stem) for annotation in second.annotations),
        annotators=(path.stem,),
    )
    if first is None:
        return named
    if path.stem in first.annotators:
        raise InputError(f"{path}: the image {second.path.name!r} occurs twice")
    if first.split or second.split:
        raise InputError(f"{path}: the image {second.path.name!r} is also in the split {first.split!r}")
    return replace(
        first, annotations=first.annotations + named.annotations, annotators=first.annotators + named.annotators
    )


def _rows(values: Any, key: str, path: Path) -> list[dict[str, Any]]:
    rows = values.get(key) if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: {key!r} is missing or no list of objects")
    return rows


def _identity(row: dict[str, Any], path: Path) -> int:
    identity = row.get("id")
    if not isinstance(identity, int) or isinstance(identity, bool):
        raise InputError(f"{path}: {identity!r:.40} is not an id (a whole number)")
    return identity


def _text(row: dict[str, Any], key: str, path: Path) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{path}: {key} is {text!r:.40}, not a name")
    return text


def _size(row: dict[str, Any], path: Path) -> tuple[int, int] | None:
    height, width = row.get("height"), row.get("width")
    if height is None and width is None:
        return None
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise InputError(f"{path}: image id {row.get('id')} has height {height!r:.40} and width {width!r:.40}")
    return height, width

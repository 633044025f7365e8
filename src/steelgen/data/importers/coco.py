"""COCO: polygons, uncompressed and compressed run lengths, crowds, several categories, several instances.

One JSON file, or a folder with JSON files in it or in annotations/. Files named train, validation or test become
splits. Other files with the same image are different annotators. `area` and `bbox` are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation, join_annotators
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon_from_flat, check_size
from steelgen.data.importers.sources import SPLIT_NAMES, ImageIndex, build_set, error_location
from steelgen.data.runlength import parse_counts
from steelgen.errors import InputError
from steelgen.files import Record, load_json, parse_record

_Id = Annotated[int, Field(strict=True)]
_Name = Annotated[str, StringConstraints(strict=True, pattern=r"\S")]


class _Category(Record):
    id: _Id
    name: _Name


class _Image(Record, extra="ignore"):
    id: _Id
    file_name: _Name
    height: Any = None
    width: Any = None


class _Region(Record, extra="ignore"):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    segmentation: Any = None
    iscrowd: Any = None


class _Document(Record):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Region]


def read_coco(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads COCO annotations; background is class 0, followed by the categories in the order of their ids."""
    files = _list_json(src)
    contents = {path: load_json(path) for path in files}
    documents = {
        path: parse_record(values, _Document, str(path))
        for path, values in contents.items()
        if len(files) == 1 or (isinstance(values, dict) and values.keys() >= _Document.model_fields.keys())
    }
    if not documents:
        raise InputError(f"{src}: no JSON file with images, annotations and categories")
    names = _collect_categories(documents)
    root = src if src.is_dir() else src.parent
    # Annotation files may be beside the folder of their images: annotations/x.json, images/y.png.
    index = ImageIndex(root.parent if src.is_file() and root.name == "annotations" else root, options.skip_missing)
    images: dict[Path, AnnotatedImage] = {}
    for path, document in documents.items():
        for image in _read_document(path, document, names, index):
            first = images.get(image.path)
            if first and path.stem in first.annotators:
                raise InputError(f"{path}: image {image.path.name!r} occurs twice")
            if first and (first.split or image.split):
                raise InputError(f"{path}: image {image.path.name!r} is also in split {first.split!r}")
            images[image.path] = join_annotators(first, image, path.stem)
    return build_set(index.root, names, sorted(images.values(), key=lambda image: (image.stem, str(image.path))), src)


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


def _collect_categories(documents: dict[Path, _Document]) -> list[str]:
    """Collects class names: background, then the categories by name, since files may number them differently."""
    names = ["background"]
    for document in documents.values():
        for _, name in sorted((category.id, category.name) for category in document.categories):
            if name.lower() != "background" and name not in names:
                names.append(name)
    if len(names) > 255:
        raise InputError(f"{next(iter(documents))}: {len(names)} classes; the limit is 255")
    return names


def _read_document(path: Path, document: _Document, names: list[str], index: ImageIndex) -> list[AnnotatedImage]:
    split_name = path.stem.lower().removeprefix("instances_")
    split = SPLIT_NAMES.get(split_name)
    for kind, identities in (("category", document.categories), ("image", document.images)):
        seen = set()
        for each in identities:
            if each.id in seen:
                raise InputError(f"{path}: {kind} id {each.id} occurs twice")
            seen.add(each.id)
    classes = {
        each.id: 0 if each.name.lower() == "background" else names.index(each.name) for each in document.categories
    }
    rows = {row.id: row for row in document.images}
    regions: dict[int, list[Annotation]] = {}
    for region in document.annotations:
        with error_location(f"{path}: annotation {region.id!r:.40}"):
            for key, known in (("image_id", rows), ("category_id", classes)):
                if not isinstance(value := getattr(region, key), int) or value not in known:
                    raise InputError(f"unknown {key} {value!r:.40}")
            annotation = _read_region(region, classes[region.category_id], rows[region.image_id])
            regions.setdefault(region.image_id, []).append(annotation)
    images = []
    for row in document.images:
        size = None
        if row.height is not None or row.width is not None:
            size = check_size(row.height, row.width, f"{path}: image id {row.id}")
        if found := index.require(row.file_name, path, split_name if split else ""):
            images.append(AnnotatedImage(found, annotations=tuple(regions.get(row.id, ())), split=split, size=size))
    return images


def _read_region(region: _Region, class_index: int, image: _Image) -> Annotation:
    segmentation, is_instance = region.segmentation, not region.iscrowd
    if isinstance(segmentation, list):
        polygons = tuple(build_polygon_from_flat(numbers) for numbers in segmentation)
        return Annotation(class_index, polygons, is_instance=is_instance)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise InputError(f"segmentation is neither polygons nor run lengths: {segmentation!r:.60}")
    counts = segmentation["counts"]
    if not isinstance(counts, list | str):
        raise InputError(f"counts are neither numbers nor text: {counts!r:.60}")
    height, width = image.height, image.width
    if not isinstance(height, int) or not isinstance(width, int) or segmentation.get("size") != [height, width]:
        raise InputError(
            f"run lengths have size {segmentation.get('size')!r:.40}, but the image's height and width are "
            f"{height!r:.40}, {width!r:.40}"
        )
    runs = parse_counts(counts)
    if runs.size and runs.sum(axis=1).max() > height * width:
        raise InputError(f"run lengths reach pixel {runs.sum(axis=1).max()} of {height * width}")
    return Annotation(class_index, runs=runs, is_instance=is_instance)

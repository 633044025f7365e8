"""VGG Image Annotator, versions 1 and 2: project or exported annotations as JSON, or CSV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon
from steelgen.data.importers.sources import ImageIndex, build_set, error_location, list_files, read_csv, read_csv_header
from steelgen.errors import InputError
from steelgen.files import load_json, parse_json

_WITHOUT_AREA = ("point", "polyline")
_DEFAULT_CLASS = "region"
"""Class of regions if none has an attribute."""


class _Region(NamedTuple):
    where: str
    image: str
    shape: dict[str, Any]
    attributes: dict[str, Any]


def read_via(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a JSON or CSV file, or the only one of VIA in a folder; its images without regions are all background.

    The class is the value of one region attribute, or the only checked box. Points and polylines have no area and are
    skipped.
    """
    path = _find_file(src)
    files, regions = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    attribute = options.attribute or _find_attribute(regions, path)
    labels = {_label(region, attribute): region.where for region in regions}
    names = collect_names(labels, options.class_names)
    annotations: dict[str, list[Annotation]] = {name: [] for name in files}
    for region in regions:
        with error_location(region.where):
            class_index = find_index(_label(region, attribute), names)
            annotations[region.image] += _read_shape(region.shape, class_index)
    index = ImageIndex(path.parent, options.skip_missing)
    images: dict[Path, AnnotatedImage] = {}
    for name, found in annotations.items():
        image = index.require(name, path)
        if image in images:
            raise InputError(f"{path}: {name!r:.120} is the same image as that of another entry")
        if image is not None:
            images[image] = AnnotatedImage(image, annotations=tuple(found))
    return build_set(path.parent, names, images.values(), path)


def _find_file(src: Path) -> Path:
    if src.is_file():
        return src
    found = [path for path in list_files(src, (".json",)) if _find_entries(load_json(path)) is not None]
    found += [path for path in list_files(src, (".csv",)) if "region_shape_attributes" in read_csv_header(path)]
    if len(found) != 1:
        raise InputError(f"{src}: has {len(found)} files of VIA, expected 1; give the path of the file")
    return found[0]


def _find_entries(values: Any) -> dict[str, Any] | None:
    """Returns {key: entry of a file} of a project or of exported annotations; None for any other JSON."""
    if isinstance(values, dict) and isinstance(values.get("_via_img_metadata"), dict):
        return values["_via_img_metadata"]
    rows = values.values() if isinstance(values, dict) and values else ()
    if rows and all(isinstance(row, dict) and "filename" in row and "regions" in row for row in rows):
        return values
    return None


def _read_json(path: Path) -> tuple[list[str], list[_Region]]:
    entries = _find_entries(load_json(path))
    if entries is None:
        raise InputError(f"{path}: no annotations of VIA (filename and regions of each file)")
    files, regions = [], []
    for key, entry in entries.items():
        name, found = (entry.get("filename"), entry.get("regions")) if isinstance(entry, dict) else (None, None)
        # In version 1, regions are a mapping from numbers.
        found = list(found.values()) if isinstance(found, dict) else found
        if not isinstance(name, str) or not name or not isinstance(found, list):
            raise InputError(f"{path}: {key!r:.60} has no filename or no list of regions")
        if name in files:
            raise InputError(f"{path}: file {name!r:.120} occurs twice")
        files.append(name)
        for number, region in enumerate(found, start=1):
            where = f"{path}: region {number} of {name!r:.80}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            if not isinstance(shape, dict) or not isinstance(attributes, dict):
                raise InputError(f"{where}: has no shape_attributes or no region_attributes")
            regions.append(_Region(where, name, shape, attributes))
    return files, regions


def _read_csv(path: Path) -> tuple[list[str], list[_Region]]:
    # In version 1, the header starts with #.
    first = "#filename" if "#filename" in read_csv_header(path) else "filename"
    files: dict[str, None] = {}
    regions = []
    for number, row in read_csv(path, (first, "region_shape_attributes", "region_attributes")):
        where = f"{path}:{number}"
        if not row[first]:
            raise InputError(f"{where}: {first} is empty")
        files[row[first]] = None
        shape, attributes = (_parse(row[key], where) for key in ("region_shape_attributes", "region_attributes"))
        if shape:
            regions.append(_Region(where, row[first], shape, attributes))
    return list(files), regions


def _parse(text: str, where: str) -> dict[str, Any]:
    value = parse_json(text or "{}", where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {text!r:.60} must be a JSON object")
    return value


def _find_attribute(regions: list[_Region], path: Path) -> str:
    keys = sorted({key for region in regions for key in region.attributes})
    if len(keys) > 1:
        raise InputError(
            f"{path}: regions have several attributes ({', '.join(keys):.120}); choose one with --attribute"
        )
    return keys[0] if keys else ""


def _label(region: _Region, attribute: str) -> str:
    if not attribute:
        return _DEFAULT_CLASS
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        checked = [key for key, on in value.items() if on is True]
        value = checked[0] if len(checked) == 1 else value
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{region.where}: {attribute} must be a class name, got {value!r:.60}")
    return value.strip()


def _read_shape(shape: dict[str, Any], class_index: int) -> list[Annotation]:
    kind, value = shape.get("name"), shape.get
    if kind in _WITHOUT_AREA:
        return []
    if kind in ("polygon", "polygone"):
        xs, ys = value("all_points_x"), value("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise InputError(f"all_points_x and all_points_y must be lists of one length, got {xs!r:.40}, {ys!r:.40}")
        ring = build_polygon(list(zip(xs, ys, strict=True)))
    elif kind == "rect":
        ring = build_box(value("x"), value("y"), value("width"), value("height"))
    elif kind == "circle":
        ring = build_ellipse(value("cx"), value("cy"), value("r"), value("r"))
    elif kind == "ellipse":
        theta = value("theta", 0)
        degrees = math.degrees(theta) if isinstance(theta, int | float) and abs(theta) < 1e3 else theta
        ring = build_ellipse(value("cx"), value("cy"), value("rx"), value("ry"), degrees)
    else:
        raise InputError(f"unknown shape {kind!r:.40}")
    return [annotate(class_index, ring)]

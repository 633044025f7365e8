"""VGG Image Annotator, versions 1 and 2: its project or its exported annotations as JSON, or as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon
from steelgen.data.importers.sources import ImageIndex, list_files, parent_of, read_csv, read_csv_header
from steelgen.errors import InputError
from steelgen.files import load_json, parse_json

_WITHOUT_AREA = ("point", "polyline")
_ONLY_CLASS = "region"
"""The class of regions where none has an attribute."""


class _Region(NamedTuple):
    where: str
    image: str
    shape: dict[str, Any]
    attributes: dict[str, Any]


def read_via(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads one JSON or CSV of VIA's; every file it names was looked at, those without regions are all background.

    The class is the value of one region attribute; a check box counts where it is the only one ticked. Points and
    polylines have no area and are left out.

    Args:
        src: the file, or a folder in which it is the only one of VIA's.

    Raises:
        InputError: if the file is not VIA's, a region cannot be read, there are several attributes and none is named
            by `attribute`, or an image is not there.
    """
    path = _find_file(src)
    files, regions = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    attribute = options.attribute or _find_attribute(regions, path)
    labels = {_label(region, attribute): region.where for region in regions}
    names = collect_names(labels, options.class_names)
    index = ImageIndex(path.parent, list_files(path.parent))
    drawn: dict[str, list[Annotation]] = {name: [] for name in files}
    for region in regions:
        class_index = find_index(_label(region, attribute), names)
        try:
            annotation = _read_shape(region.shape, class_index)
        except InputError as error:
            raise InputError(f"{region.where}: {error}") from None
        if annotation:
            drawn[region.image].append(annotation)
    images: dict[Path, AnnotatedImage] = {}
    for name, marked in drawn.items():
        found = index.require(name, path, options.skip_missing)
        if found in images:
            raise InputError(f"{path}: {name!r:.120} means an image that another entry means, too")
        if found is not None:
            images[found] = AnnotatedImage(found, found.stem, parent_of(found.stem), tuple(marked))
    if not images:
        raise InputError(f"{path}: none of the annotated images is there")
    return AnnotatedSet(DatasetInfo(name=path.parent.resolve().name, class_names=names), list(images.values()))


def _find_file(src: Path) -> Path:
    if src.is_file():
        return src
    found = [path for path in list_files(src, (".json",)) if _entries(load_json(path)) is not None]
    found += [path for path in list_files(src, (".csv",)) if "region_shape_attributes" in read_csv_header(path)]
    if len(found) != 1:
        raise InputError(f"{src}: {len(found)} files of VIA's; there must be one, or name it")
    return found[0]


def _entries(values: Any) -> dict[str, Any] | None:
    """{key: file} of a project or of exported annotations; None for any other JSON."""
    if isinstance(values, dict) and isinstance(values.get("_via_img_metadata"), dict):
        return values["_via_img_metadata"]
    rows = values.values() if isinstance(values, dict) and values else ()
    if rows and all(isinstance(row, dict) and "filename" in row and "regions" in row for row in rows):
        return values
    return None


def _read_json(path: Path) -> tuple[list[str], list[_Region]]:
    entries = _entries(load_json(path))
    if entries is None:
        raise InputError(f"{path}: holds no annotations of VIA's (filename and regions of each file)")
    files, regions = [], []
    for key, entry in entries.items():
        name, found = (entry.get("filename"), entry.get("regions")) if isinstance(entry, dict) else (None, None)
        # Version 1 numbers the regions in a mapping.
        found = list(found.values()) if isinstance(found, dict) else found
        if not isinstance(name, str) or not name or not isinstance(found, list):
            raise InputError(f"{path}: {key!r:.60} has no filename or no list of regions")
        if name in files:
            raise InputError(f"{path}: the file {name!r:.120} occurs twice")
        files.append(name)
        for number, region in enumerate(found, start=1):
            where = f"{path}: region {number} of {name!r:.80}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            if not isinstance(shape, dict) or not isinstance(attributes, dict):
                raise InputError(f"{where}: has no shape_attributes and region_attributes")
            regions.append(_Region(where, name, shape, attributes))
    return files, regions


def _read_csv(path: Path) -> tuple[list[str], list[_Region]]:
    # Version 1 writes a # in front of the header.
    first = "#filename" if "#filename" in read_csv_header(path) else "filename"
    files: dict[str, None] = {}
    regions = []
    for number, row in read_csv(path, (first, "region_shape_attributes", "region_attributes")):
        where = f"{path}:{number}"
        if not row[first]:
            raise InputError(f"{where}: names no file")
        files[row[first]] = None
        shape, attributes = (_parse(row[key], where) for key in ("region_shape_attributes", "region_attributes"))
        if shape:
            regions.append(_Region(where, row[first], shape, attributes))
    return list(files), regions


def _parse(text: str, where: str) -> dict[str, Any]:
    value = parse_json(text or "{}", where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {text!r:.60} is no JSON object")
    return value


def _find_attribute(regions: list[_Region], path: Path) -> str:
    keys = sorted({key for region in regions for key in region.attributes})
    if len(keys) > 1:
        raise InputError(f"{path}: regions have several attributes ({', '.join(keys):.120}); name one by --attribute")
    return keys[0] if keys else ""


def _label(region: _Region, attribute: str) -> str:
    if not attribute:
        return _ONLY_CLASS
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if on is True]
        value = ticked[0] if len(ticked) == 1 else value
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{region.where}: {attribute} is {value!r:.60}, not the name of a class")
    return value.strip()


def _read_shape(shape: dict[str, Any], class_index: int) -> Annotation | None:
    kind = shape.get("name")
    if kind in _WITHOUT_AREA:
        return None
    if kind in ("polygon", "polygone"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise InputError(f"all_points_x and all_points_y are no lists of the same length: {xs!r:.40}, {ys!r:.40}")
        ring = build_polygon(list(zip(xs, ys, strict=True)))
    elif kind == "rect":
        ring = build_box(*_values(shape, "x", "y", "width", "height"))
    elif kind == "circle":
        x, y, radius = _values(shape, "cx", "cy", "r")
        ring = build_ellipse(x, y, radius, radius)
    elif kind == "ellipse":
        theta = shape.get("theta", 0)
        degrees = math.degrees(theta) if isinstance(theta, int | float) and abs(theta) < 1e3 else theta
        x, y, radius_x, radius_y = _values(shape, "cx", "cy", "rx", "ry")
        ring = build_ellipse(x, y, radius_x, radius_y, degrees)
    else:
        raise InputError(f"the shape {kind!r:.40} is not known")
    return Annotation(class_index, (ring,), is_instance=class_index not in (0, 255))


def _values(shape: dict[str, Any], *keys: str) -> Iterator[Any]:
    return (shape.get(key) for key in keys)

"""CVAT for images 1.1: annotations.xml and images; polygons, boxes, ellipses and masks."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon, check_box, check_size, place_mask
from steelgen.data.importers.sources import SPLIT_NAMES, ImageIndex, build_set, error_location, find_only_file, read_xml
from steelgen.data.runlength import decode_runs, parse_counts, to_integers
from steelgen.errors import InputError

_AREAS = ("polygon", "box", "ellipse", "mask")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
_LIMIT = 2**20


def read_cvat(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads one XML file, or the only one in a folder; later shapes in z_order cover earlier ones.

    The labels `ignore` and `__ignore__` mark pixels to ignore; subsets with the name of a split become splits. Points,
    lines, cuboids, skeletons and tags have no area and are skipped.
    """
    path = find_only_file(src, ".xml")
    root = read_xml(path)
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "CVAT for video" if root.tag == "annotations" else f"XML with the root {root.tag!r:.40}"
        raise InputError(f"{path}: must be CVAT for images 1.1, got {kind}")
    labels: dict[str, object] = {name.text: path for name in root.findall("meta//label/name") if name.text}
    for image in root.findall("image"):
        for shape in image:
            label = shape.get("label", "")
            if shape.tag in _AREAS and not label.strip():
                raise InputError(f"{path}: a {shape.tag} of {image.get('name')!r:.80} has no label")
            if shape.tag in _AREAS:
                labels.setdefault(label, path)
    names = collect_names(labels, options.class_names, ordered=True)
    index = ImageIndex(path.parent, options.skip_missing)
    images = []
    for image in root.findall("image"):
        name, subset = image.get("name", ""), image.get("subset", "")
        found = index.require(name, path, hint=subset)
        if found is None:
            continue
        with error_location(f"{path}: image {name!r:.80}"):
            size = check_size(_integer(image, "height"), _integer(image, "width"), "<image>")
            shapes = sorted(image, key=lambda shape: _integer(shape, "z_order", 0))
            regions = tuple(_read_shape(shape, names, size) for shape in shapes if shape.tag not in _WITHOUT_AREA)
        images.append(AnnotatedImage(found, annotations=regions, split=SPLIT_NAMES.get(subset.lower()), size=size))
    return build_set(path.parent, names, images, path)


def _read_shape(shape: Element, names: list[str], size: tuple[int, int]) -> Annotation:
    if shape.tag not in _AREAS:
        raise InputError(f"unknown shape <{shape.tag:.40}>")
    class_index = find_index(shape.get("label", ""), names)
    if shape.tag == "mask":
        return annotate(class_index, runs=_read_mask(shape, size))
    degrees = _number(shape, "rotation", 0.0)
    if shape.tag == "polygon":
        pairs = [point.split(",") for point in shape.get("points", "").split(";")]
        return annotate(class_index, build_polygon([[_to_number(value) for value in pair] for pair in pairs]))
    if shape.tag == "box":
        left, top, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return annotate(class_index, build_box(left, top, right - left, bottom - top, degrees, "center"))
    x, y, radius_x, radius_y = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    return annotate(class_index, build_ellipse(x, y, radius_x, radius_y, degrees))


def _read_mask(shape: Element, size: tuple[int, int]) -> NDArray[np.int64]:
    """Converts run lengths along the rows of a box, background first, to runs of the whole image."""
    left, top, width, height = (_integer(shape, key) for key in ("left", "top", "width", "height"))
    check_box(left, top, width, height, size)
    counts = to_integers(shape.get("rle", "").split(","))
    if counts.min() < 0 or counts.sum() != width * height:
        raise InputError(f"run lengths {shape.get('rle')!r:.40} do not fill a box of {width}x{height}")
    return place_mask(decode_runs(parse_counts(counts.tolist()), width, height).T, left, top, size)


def _number(element: Element, key: str, default: float | None = None) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    value = _to_number(text)
    if not isinstance(value, float):
        raise InputError(f"<{element.tag:.40}>: {key} is {text!r:.40}, must be a number")
    return value


def _to_number(text: str | None) -> float | str | None:
    """Converts text to a number; returns it unchanged if it is not one, for the error message."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _integer(element: Element, key: str, default: int | None = None) -> int:
    value = _number(element, key, default)
    if not (abs(value) <= _LIMIT and float(value).is_integer()):
        raise InputError(f"<{element.tag:.40}>: {key} is {value:g}, must be an integer within ±{_LIMIT}")
    return int(value)

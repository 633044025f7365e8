"""LabelMe: one JSON file beside each image; polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation, join_annotators
from steelgen.data.images import decoder_errors
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_ellipse, build_polygon, check_box, check_size, place_mask
from steelgen.data.importers.sources import ImageIndex, build_set, error_location, list_files
from steelgen.errors import InputError
from steelgen.files import load_json


def read_labelme(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a folder of LabelMe files.

    The label `__ignore__` marks pixels to ignore. Files in different folders with the same image are different
    annotators. Points and lines have no area and are skipped.
    """
    documents: dict[Path, dict[str, Any]] = {}
    labels: dict[str, Path] = {}
    for path in list_files(src, (".json",)):
        values = load_json(path)
        if not isinstance(values, dict) or not isinstance(values.get("shapes"), list) or "imagePath" not in values:
            continue
        documents[path] = values
        for number, shape in enumerate(values["shapes"], start=1):
            label = shape.get("label") if isinstance(shape, dict) else None
            if not isinstance(label, str) or not label.strip():
                raise InputError(f"{path}: shape {number} has no label")
            labels[label] = path
    if not documents:
        raise InputError(f"{src}: no LabelMe files (JSON with shapes and imagePath) found")
    names = collect_names(labels, options.class_names)
    index = ImageIndex(src, options.skip_missing)
    images: dict[Path, AnnotatedImage] = {}
    for path, values in documents.items():
        annotator = path.parent.name
        found = index.require(str(values["imagePath"]), path, hint=annotator)
        if found is None:
            continue
        size = None
        if values.get("imageHeight") is not None or values.get("imageWidth") is not None:
            size = check_size(values.get("imageHeight"), values.get("imageWidth"), f"{path}: image")
        annotations: list[Annotation] = []
        for number, shape in enumerate(values["shapes"], start=1):
            with error_location(f"{path}: shape {number} ({shape['label']!r:.40})"):
                annotations += _read_shape(shape, find_index(shape["label"], names), size)
        image = AnnotatedImage(found, annotations=tuple(annotations), size=size)
        first = images.get(found)
        if first and annotator in first.annotators:
            raise InputError(f"{path}: another file in the same folder also annotates {found.name!r}")
        if first and first.size != size:
            raise InputError(f"{path}: image size {size} differs from {first.size} of another annotator")
        images[found] = join_annotators(first, image, annotator)
    return build_set(src, names, images.values())


def _read_shape(shape: dict[str, Any], class_index: int, size: tuple[int, int] | None) -> list[Annotation]:
    kind = shape.get("shape_type") or "polygon"
    points = shape.get("points")
    if kind == "polygon":
        return [annotate(class_index, build_polygon(points))]
    if kind in ("point", "line", "linestrip", "points"):
        return []
    if kind not in ("rectangle", "circle", "mask"):
        raise InputError(f"unknown shape_type {kind!r:.40}")
    if not isinstance(points, list) or len(points) != 2:
        raise InputError(f"a {kind} needs two points, got {points!r:.60}")
    # The check of polygons needs a third point.
    (x0, y0), (x1, y1), _ = build_polygon([*points, points[-1]])
    if kind == "rectangle":
        return [annotate(class_index, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))]
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return [annotate(class_index, build_ellipse(x0, y0, radius, radius))]
    if size is None:
        raise InputError("a mask needs imageHeight and imageWidth")
    return [annotate(class_index, runs=_read_mask(shape.get("mask"), round(x0), round(y0), size))]


def _read_mask(text: Any, left: int, top: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """Decodes a base64 PNG with the top left pixel at (left, top)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"the mask is not base64: {error}") from None
    with decoder_errors("mask", "PNG"):
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            check_box(left, top, *image.size, size)
            return place_mask(np.asarray(image.convert("L")) > 0, left, top, size)

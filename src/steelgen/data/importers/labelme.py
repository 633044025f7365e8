"""LabelMe: one JSON file an image, beside it; polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_ellipse, build_polygon
from steelgen.data.importers.sources import ImageIndex, list_files, parent_of
from steelgen.data.runlength import encode_runs
from steelgen.errors import InputError
from steelgen.files import load_json


def read_labelme(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a folder of LabelMe files.

    The label `__ignore__` marks pixels to ignore. Where several files, in different folders, name the same image, each
    folder is an annotator. Points and lines have no area and are left out.

    Raises:
        InputError: if a file is not LabelMe's, a shape cannot be read, a label is not among `class_names`, or an image
            is not there.
    """
    paths = list_files(src, (".json",))
    documents = {path: values for path in paths if _looks_like_labelme(values := load_json(path))}
    if not documents:
        raise InputError(f"{src}: no LabelMe file (JSON with shapes and imagePath) below it")
    for path, values in documents.items():
        _check_shapes(path, values)
    labels = {shape["label"]: path for path, values in documents.items() for shape in values["shapes"]}
    names = collect_names(labels, options.class_names)
    index = ImageIndex(src, list_files(src))
    images: dict[Path, AnnotatedImage] = {}
    for path, values in documents.items():
        name = str(values["imagePath"])
        found = index.require(name, path, options.skip_missing, hint=path.parent.name)
        if found is None:
            continue
        image = AnnotatedImage(
            path=found,
            stem=found.stem,
            parent=parent_of(found.stem),
            annotations=tuple(_read_shapes(path, values, names)),
            size=_size(path, values),
        )
        images[found] = _join(images.get(found), image, path)
    if not images:
        raise InputError(f"{src}: none of the annotated images is there")
    return AnnotatedSet(DatasetInfo(name=src.resolve().name, class_names=names), list(images.values()))


def _looks_like_labelme(values: Any) -> bool:
    return isinstance(values, dict) and isinstance(values.get("shapes"), list) and "imagePath" in values


def _check_shapes(path: Path, values: dict[str, Any]) -> None:
    for number, shape in enumerate(values["shapes"], start=1):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
            raise InputError(f"{path}: shape {number} has no label")


def _read_shapes(path: Path, values: dict[str, Any], names: list[str]) -> list[Annotation]:
    annotations = []
    for number, shape in enumerate(values["shapes"], start=1):
        label = shape["label"]
        try:
            annotation = _read_shape(shape, find_index(label, names), _size(path, values))
        except InputError as error:
            raise InputError(f"{path}: shape {number} ({label!r:.40}): {error}") from None
        if annotation is not None:
            annotations.append(annotation)
    return annotations


def _read_shape(shape: dict[str, Any], class_index: int, size: tuple[int, int] | None) -> Annotation | None:
    kind = shape.get("shape_type") or "polygon"
    points = shape.get("points")
    is_instance = class_index not in (0, 255)
    if kind == "polygon":
        return Annotation(class_index, (build_polygon(points),), is_instance=is_instance)
    if kind in ("point", "line", "linestrip", "points"):
        return None
    if kind not in ("rectangle", "circle", "mask"):
        raise InputError(f"shape_type {kind!r:.40} is not known")
    if not isinstance(points, list) or len(points) != 2:
        raise InputError(f"a {kind} needs two points: {points!r:.60}")
    # Two points are checked as the triangle that visits the second one twice.
    (x0, y0), (x1, y1), _ = build_polygon([*points, points[-1]])
    if kind == "rectangle":
        return Annotation(class_index, (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]),), is_instance=is_instance)
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return Annotation(class_index, (build_ellipse(x0, y0, radius, radius),), is_instance=is_instance)
    if size is None:
        raise InputError("a mask needs imageHeight and imageWidth")
    return Annotation(
        class_index, runs=_read_mask(shape.get("mask"), round(x0), round(y0), size), is_instance=is_instance
    )


def _read_mask(text: Any, left: int, top: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """A PNG in base64 whose top left pixel stands at (left, top)."""
    try:
        data = base64.b64decode(text, validate=True)
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            if not (0 <= left <= size[1] - width and 0 <= top <= size[0] - height):
                raise InputError(
                    f"a mask of {width}x{height} at ({left}, {top}) leaves the image of {size[1]}x{size[0]}"
                )
            part = np.asarray(image.convert("L")) > 0
    except InputError:
        raise
    except (TypeError, binascii.Error) as error:
        raise InputError(f"the mask is not base64: {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise InputError(f"the mask is not a readable PNG: {error!s:.80}") from None
    whole = np.zeros(size, bool)
    whole[top : top + height, left : left + width] = part
    return encode_runs(whole)


def _join(first: AnnotatedImage | None, second: AnnotatedImage, path: Path) -> AnnotatedImage:
    annotator = path.parent.name
    named = replace(
        second,
        annotations=tuple(replace(annotation, annotator=annotator) for annotation in second.annotations),
        annotators=(annotator,),
    )
    if first is None:
        return named
    if annotator in first.annotators:
        raise InputError(f"{path}: another file in the same folder also annotates {second.path.name!r}")
    if first.size != second.size:
        raise InputError(
            f"{path}: states the size {second.size}, another annotator's file {first.size} (height, width)"
        )
    return replace(
        first, annotations=first.annotations + named.annotations, annotators=first.annotators + named.annotators
    )


def _size(path: Path, values: dict[str, Any]) -> tuple[int, int] | None:
    height, width = values.get("imageHeight"), values.get("imageWidth")
    if height is None and width is None:
        return None
    if not isinstance(height, int) or not isinstance(width, int) or not (0 < height < 2**20 and 0 < width < 2**20):
        raise InputError(f"{path}: imageHeight {height!r:.40} and imageWidth {width!r:.40}")
    return height, width

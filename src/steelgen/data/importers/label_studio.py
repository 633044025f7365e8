"""Label Studio's JSON export: polygons, brushes, rectangles and ellipses of tasks with one image each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import IMAGE_SUFFIXES
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon, check_size
from steelgen.data.importers.sources import ImageIndex, base_name, build_set, error_location, find_only_file
from steelgen.data.runlength import decode_brush, encode_runs
from steelgen.errors import InputError
from steelgen.files import load_json

_UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""Prefix that Label Studio adds to the names of uploaded files."""
_AREAS = ({"rle"}, {"points"}, {"x", "y", "radiusX", "radiusY"}, {"x", "y", "width", "height"})
_OPAQUE = 128
"""Smallest opacity (0-255) of a pixel of a brush."""


def read_label_studio(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the export "JSON", or the only JSON in a folder; the annotations of a task are different annotators.

    Skipped annotations, tasks without annotations, and results without an area (choices, key points) are omitted.
    """
    path = find_only_file(src, ".json")
    tasks = load_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise InputError(f'{path}: must be a list of tasks with data; export as "JSON", not as "JSON-MIN"')
    results = [_read_task(task, path) for task in tasks]
    labels = {label: path for task in results for _, found in task.annotations for label, _ in found}
    names = collect_names(labels, options.class_names)
    index = ImageIndex(path.parent, options.skip_missing)
    images: dict[Path, AnnotatedImage] = {}
    for task in results:
        if not task.annotations:
            continue
        found = index.find(task.image) or index.require(_UPLOAD.sub("", task.image, count=1), path)
        if found is None:
            continue
        if found in images:
            raise InputError(f"{task.where}: another task has the same image {found.name}")
        regions = [
            _read_region(result, find_index(label, names), annotator, task)
            for annotator, labeled in task.annotations
            for label, result in labeled
        ]
        annotators = tuple(annotator for annotator, _ in task.annotations)
        images[found] = AnnotatedImage(found, annotations=tuple(regions), annotators=annotators, size=task.size)
    return build_set(path.parent, names, images.values(), path)


class _Task(NamedTuple):
    """Image of a task, and the results with an area and their labels, of each annotator."""

    where: str
    image: str
    size: tuple[int, int] | None
    """(height, width) in the results; None without results."""
    annotations: list[tuple[str, list[tuple[str, dict[str, Any]]]]]


def _read_task(task: dict[str, Any], path: Path) -> _Task:
    where = f"{path}: task {task.get('id')!r:.20}"
    data = task["data"]
    values = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    names = [name for value in values if (name := _file_name(value)).lower().endswith(IMAGE_SUFFIXES)]
    if len(names) != 1:
        raise InputError(f"{where}: data has {len(names)} images, must have 1")
    size: tuple[int, int] | None = None
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    annotations = _check_objects(task.get("annotations", []), f"{where}: annotations")
    for number, annotation in enumerate(annotations, start=1):
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by", number)
        who = who.get("email", who.get("id", number)) if isinstance(who, dict) else who
        labeled = found.setdefault(f"{who}" if f"{who}" not in found else f"{who} ({number})", [])
        for result in _check_objects(annotation.get("result"), f"{where}: result"):
            if label := _find_label(result, where):
                labeled.append((label, result))
                stated = check_size(result.get("original_height"), result.get("original_width"), f"{where}: original")
                if size not in (None, stated):
                    raise InputError(f"{where}: results for different image sizes {size} and {stated} (height, width)")
                size = stated
    return _Task(where, names[0], size, list(found.items()))


def _check_objects(values: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{where}: must be a list of JSON objects, got {values!r:.60}")
    return values


def _find_label(result: dict[str, Any], where: str) -> str | None:
    """Returns the label of a result with an area; None for any other."""
    value = result.get("value")
    if not isinstance(value, dict) or not any(keys <= value.keys() for keys in _AREAS):
        return None
    labels = next((each for key, each in value.items() if key.endswith("labels")), ())
    if labels == ():
        return None
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        raise InputError(f"{where}: a region must have one label, got {labels!r:.60}")
    return labels[0].strip()


def _file_name(url: str) -> str:
    """Returns the file name of /data/upload/1/a.png, s3://bucket/a.png?x=y, or /data/local-files/?d=folder/a.png."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return base_name(parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path))


def _read_region(result: dict[str, Any], class_index: int, annotator: str, task: _Task) -> Annotation:
    assert task.size is not None
    height, width = task.size
    value = result["value"]
    with error_location(f"{task.where}: result {result.get('id')!r:.20}"):
        if "rle" in value:
            return annotate(class_index, runs=_read_brush(value["rle"], height, width), annotator=annotator)
        if "points" in value:
            ring = build_polygon(value["points"]) * (width / 100, height / 100)
        else:
            # Rotations are in pixels, so percentages are converted first.
            keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
            x, y, across, down = (
                _scale(value.get(key), edge) for key, edge in zip(keys, (width, height) * 2, strict=True)
            )
            build = build_ellipse if "radiusX" in value else build_box
            ring = build(x, y, across, down, value.get("rotation", 0))
    return annotate(class_index, ring, annotator=annotator)


def _scale(value: Any, edge: int) -> Any:
    """Converts a percentage of an edge to pixels; returns invalid values unchanged, for the error message."""
    return value / 100 * edge if isinstance(value, int | float) and abs(value) < 1e9 else value


def _read_brush(rle: Any, height: int, width: int) -> NDArray[np.int64]:
    """Converts Label Studio's run lengths of an RGBA image to runs of its opaque pixels."""
    if not isinstance(rle, list) or not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle):
        raise InputError(f"the brush's rle must be a list of bytes, got {rle!r:.40}")
    values = decode_brush(bytes(rle), 4 * height * width)
    return encode_runs(values.reshape(height, width, 4)[..., 3] >= _OPAQUE)

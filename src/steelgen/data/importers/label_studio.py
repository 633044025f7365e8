"""Label Studio's JSON export: polygons, brushes, rectangles and ellipses of tasks with one image each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import IMAGE_SUFFIXES, DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon
from steelgen.data.importers.sources import ImageIndex, base_name, find_only_file, list_files, parent_of
from steelgen.data.runlength import decode_brush, encode_runs
from steelgen.errors import InputError
from steelgen.files import load_json

_UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts in front of the name of an uploaded file."""
_AREAS = ({"rle"}, {"points"}, {"x", "y", "radiusX", "radiusY"}, {"x", "y", "width", "height"})
_OPAQUE = 128
"""A brush's opacity, 0-255, from which a pixel belongs to it."""


def read_label_studio(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the export "JSON"; what several people said about a task are several annotators, skipped ones are none.

    Tasks that nobody annotated are left out. Results without an area (choices, key points) are left out, too.

    Args:
        src: the file, or a folder in which it is the only JSON.

    Raises:
        InputError: if the file is no such export, a result cannot be read, or an image is not there.
    """
    path = find_only_file(src, ".json")
    tasks = load_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise InputError(f'{path}: is no list of tasks with data; export as "JSON", not as "JSON-MIN"')
    results = [_read_task(task, path) for task in tasks]
    labels = {label: path for task in results for _, found in task.annotations for label, _ in found}
    names = collect_names(labels, options.class_names)
    index = ImageIndex(path.parent, list_files(path.parent))
    images: dict[Path, AnnotatedImage] = {}
    for task in results:
        if not task.annotations:
            continue
        found = index.find(task.image) or index.require(
            _UPLOAD.sub("", task.image, count=1), path, options.skip_missing
        )
        if found is None:
            continue
        if found in images:
            raise InputError(f"{task.where}: another task also has the image {found.name}")
        drawn = [
            _read_region(result, find_index(label, names), annotator, task)
            for annotator, found_results in task.annotations
            for label, result in found_results
        ]
        images[found] = AnnotatedImage(
            path=found,
            stem=found.stem,
            parent=parent_of(found.stem),
            annotations=tuple(drawn),
            annotators=tuple(annotator for annotator, _ in task.annotations),
            size=task.size,
        )
    if not images:
        raise InputError(f"{path}: no annotated task has an image that is there")
    return AnnotatedSet(DatasetInfo(name=path.parent.resolve().name, class_names=names), list(images.values()))


class _Task(NamedTuple):
    """One task: its image, and the results of each annotator that have an area, with their labels."""

    where: str
    image: str
    size: tuple[int, int] | None
    """(height, width) as the results state it; None without results."""
    annotations: list[tuple[str, list[tuple[str, dict[str, Any]]]]]


def _read_task(task: dict[str, Any], path: Path) -> _Task:
    where = f"{path}: task {task.get('id')!r:.20}"
    data = task["data"]
    values = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    names = [name for value in values if (name := _file_name(value)).lower().endswith(IMAGE_SUFFIXES)]
    if len(names) != 1:
        raise InputError(f"{where}: data names {len(names)} images; tasks of one image are read")
    size: tuple[int, int] | None = None
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for number, annotation in enumerate(_list_of_objects(task.get("annotations", []), where), start=1):
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by", number)
        who = who.get("email", who.get("id", number)) if isinstance(who, dict) else who
        labeled = found.setdefault(f"{who}" if f"{who}" not in found else f"{who} ({number})", [])
        for result in _list_of_objects(annotation.get("result"), where):
            if label := _find_label(result, where):
                labeled.append((label, result))
                stated = _read_size(result, where)
                if size not in (None, stated):
                    raise InputError(f"{where}: results of images of the sizes {size} and {stated} (height, width)")
                size = stated
    return _Task(where, names[0], size, list(found.items()))


def _list_of_objects(values: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{where}: {values!r:.60} is no list of annotations or results")
    return values


def _find_label(result: dict[str, Any], where: str) -> str | None:
    """The label of a result with an area; None for any other."""
    value = result.get("value")
    if not isinstance(value, dict) or not any(keys <= value.keys() for keys in _AREAS):
        return None
    kinds = [each for key, each in value.items() if key.endswith("labels")]
    if not kinds:
        return None
    labels = kinds[0]
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        raise InputError(f"{where}: a region has the labels {labels!r:.60}; one is needed")
    return labels[0].strip()


def _read_size(result: dict[str, Any], where: str) -> tuple[int, int]:
    height, width = result.get("original_height"), result.get("original_width")
    if not all(isinstance(edge, int) and 0 < edge < 2**16 for edge in (height, width)):
        raise InputError(f"{where}: original_height and original_width are {height!r:.20} and {width!r:.20}")
    assert isinstance(height, int)
    assert isinstance(width, int)
    return height, width


def _file_name(url: str) -> str:
    """The file's name in /data/upload/1/a.png, s3://bucket/a.png?x=y, or /data/local-files/?d=folder/a.png."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return base_name(parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path))


def _read_region(result: dict[str, Any], class_index: int, annotator: str, task: _Task) -> Annotation:
    assert task.size is not None
    height, width = task.size
    value = result["value"]
    is_instance = class_index not in (0, 255)
    try:
        if "rle" in value:
            runs = _read_brush(value["rle"], height, width)
            return Annotation(class_index, runs=runs, annotator=annotator, is_instance=is_instance)
        if "points" in value:
            ring = build_polygon(value["points"]) * (width / 100, height / 100)
        elif "radiusX" in value:
            # Turned in pixels, not in per cent.
            x, y, radius_x, radius_y = _scale(value, ("x", "y", "radiusX", "radiusY"), (width, height) * 2)
            ring = build_ellipse(x, y, radius_x, radius_y, value.get("rotation", 0))
        else:
            x, y, box_width, box_height = _scale(value, ("x", "y", "width", "height"), (width, height) * 2)
            ring = build_box(x, y, box_width, box_height, value.get("rotation", 0))
    except InputError as error:
        raise InputError(f"{task.where}: result {result.get('id')!r:.20}: {error}") from None
    return Annotation(class_index, (ring,), annotator=annotator, is_instance=is_instance)


def _scale(value: dict[str, Any], keys: tuple[str, ...], edges: tuple[int, ...]) -> list[Any]:
    """Per cent of an edge in pixels; what is no number is left for the check that follows."""
    found = [(value.get(key), edge) for key, edge in zip(keys, edges, strict=True)]
    return [
        number / 100 * edge if isinstance(number, int | float) and abs(number) < 1e9 else number
        for number, edge in found
    ]


def _read_brush(rle: Any, height: int, width: int) -> NDArray[np.int64]:
    """Label Studio's run lengths of an RGBA picture, of which the opacity counts."""
    if not isinstance(rle, list) or not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle):
        raise InputError(f"the brush's rle is {rle!r:.40}, not a list of bytes")
    values = decode_brush(bytes(rle), 4 * height * width)
    return encode_runs(values.reshape(height, width, 4)[..., 3] >= _OPAQUE)

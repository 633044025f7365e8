"""CVAT for images 1.1: annotations.xml and images; polygons, boxes, ellipses and masks."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon
from steelgen.data.importers.sources import SPLIT_NAMES, ImageIndex, find_only_file, list_files, parent_of, read_xml
from steelgen.data.runlength import encode_runs, parse_counts
from steelgen.errors import InputError

_AREAS = ("polygon", "box", "ellipse", "mask")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads one XML file, or the only one of a folder; shapes are drawn in the order of their z_order.

    The labels `ignore` and `__ignore__` mark pixels to ignore; subsets named like splits become splits. Points, lines,
    cuboids, skeletons and tags have no area and are left out.

    Raises:
        InputError: if the file is no CVAT for images, a shape cannot be read, or an image is not there.
    """
    path = find_only_file(src, ".xml")
    root = read_xml(path)
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "of CVAT for video" if root.tag == "annotations" else f"with {root.tag!r:.40} as its root"
        raise InputError(f"{path}: is XML {kind}, not of CVAT for images 1.1")
    elements = root.findall("image")
    if not elements:
        raise InputError(f"{path}: holds no <image>")
    labels: dict[str, object] = {name.text: path for name in root.findall("meta//label/name") if name.text}
    for image in elements:
        for shape in image:
            if shape.tag in _AREAS:
                label = shape.get("label", "")
                if not label.strip():
                    raise InputError(f"{path}: a {shape.tag} of {image.get('name')!r:.80} has no label")
                labels.setdefault(label, path)
    names = collect_names(labels, options.class_names, ordered=True)
    index = ImageIndex(path.parent, list_files(path.parent))
    images = []
    for image in elements:
        name = image.get("name", "")
        subset = image.get("subset", "")
        found = index.require(name, path, options.skip_missing, hint=subset)
        if found is None:
            continue
        try:
            size = _whole(image, "height"), _whole(image, "width")
            shapes = sorted((shape for shape in image), key=lambda shape: _whole(shape, "z_order", 0))
            regions = [_read_shape(shape, names, size) for shape in shapes if shape.tag not in _WITHOUT_AREA]
        except InputError as error:
            raise InputError(f"{path}: image {name!r:.80}: {error}") from None
        images.append(
            AnnotatedImage(
                path=found,
                stem=found.stem,
                parent=parent_of(found.stem),
                annotations=tuple(regions),
                split=SPLIT_NAMES.get(subset.lower()),
                size=size,
            )
        )
    if not images:
        raise InputError(f"{path}: none of the annotated images is there")
    return AnnotatedSet(DatasetInfo(name=path.parent.resolve().name, class_names=names), images)


def _read_shape(shape: Element, names: list[str], size: tuple[int, int]) -> Annotation:
    if shape.tag not in _AREAS:
        raise InputError(f"a shape <{shape.tag:.40}> is not known")
    class_index = find_index(shape.get("label", ""), names)
    is_instance = class_index not in (0, 255)
    if shape.tag == "mask":
        return Annotation(class_index, runs=_read_mask(shape, size), is_instance=is_instance)
    degrees = _number(shape, "rotation", 0.0)
    if shape.tag == "polygon":
        pairs = [point.split(",") for point in shape.get("points", "").split(";")]
        ring = build_polygon([[_to_number(value) for value in pair] for pair in pairs])
    elif shape.tag == "box":
        left, top, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        ring = build_box(left, top, right - left, bottom - top, degrees, "center")
    else:
        x, y, radius_x, radius_y = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
        ring = build_ellipse(x, y, radius_x, radius_y, degrees)
    return Annotation(class_index, (ring,), is_instance=is_instance)


def _read_mask(shape: Element, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths along the rows of a box, background first → runs of the whole image."""
    left, top, width, height = (_whole(shape, key) for key in ("left", "top", "width", "height"))
    if not (left >= 0 and top >= 0 and 0 < width <= size[1] - left and 0 < height <= size[0] - top):
        raise InputError(f"a mask of {width}x{height} at ({left}, {top}) leaves the image of {size[1]}x{size[0]}")
    counts = [int(text) if text.isascii() and text.isdigit() else -1 for text in _split(shape.get("rle", ""))]
    if min(counts, default=-1) < 0 or sum(counts) != width * height:
        raise InputError(f"the run lengths {shape.get('rle')!r:.40} do not fill a box of {width}x{height}")
    runs = parse_counts(counts)
    flat = np.zeros(width * height + 1, np.int8)
    np.add.at(flat, runs[:, 0], 1)
    np.add.at(flat, runs.sum(axis=1), -1)
    whole = np.zeros(size, bool)
    whole[top : top + height, left : left + width] = (np.cumsum(flat)[:-1] > 0).reshape(height, width)
    return encode_runs(whole)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _number(element: Element, key: str, missing: float | None = None) -> float:
    text = element.get(key)
    if text is None and missing is not None:
        return missing
    value = _to_number(text)
    if not isinstance(value, float):
        raise InputError(f"<{element.tag}>: {key} is {text!r:.40}, not a number")
    return value


def _to_number(text: str | None) -> float | str | None:
    """The number, or the text as it was, for the error that names it."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _whole(element: Element, key: str, missing: int | None = None) -> int:
    text = element.get(key)
    if text is None and missing is not None:
        return missing
    try:
        value = int(text or "")
    except ValueError:
        value = 2**20
    if abs(value) >= 2**20:
        raise InputError(f"<{element.tag:.40}>: {key} is {text!r:.40}, not a whole number in range")
    return value

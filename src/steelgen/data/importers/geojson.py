"""GeoJSON in pixels, as QuPath exports its annotations: one file an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import IMAGE_SUFFIXES, DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_rings
from steelgen.data.importers.sources import StemIndex, list_files, parent_of
from steelgen.errors import InputError
from steelgen.files import load_json

_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_ONLY_CLASS = "annotation"
"""The class of features without one."""


def read_geojson(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads *.geojson, or *.json with features, each beside or below the folder of the image of its name.

    The class is QuPath's classification, else the property `class` or `label`. `Ignore*` marks pixels to ignore. Points
    and lines have no area and are left out.

    Args:
        src: a folder.

    Raises:
        InputError: if a file is no GeoJSON, a geometry cannot be read, or an image is not there.
    """
    paths = list_files(src, (".geojson", ".json"))
    features = {path: found for path in paths if (found := _list_features(path)) is not None}
    if not features:
        raise InputError(f"{src}: holds no GeoJSON (features with a geometry)")
    labels = {_label(feature, path): path for path, found in features.items() for feature in found}
    names = collect_names(labels, options.class_names)
    index = StemIndex(src, list_files(src))
    images: dict[Path, AnnotatedImage] = {}
    for path, found in features.items():
        image = index.require(_image_stem(path), path, options.skip_missing)
        if image is None:
            continue
        if image in images:
            raise InputError(f"{path}: another file also annotates {image.name}")
        annotations = []
        for number, feature in enumerate(found, start=1):
            try:
                annotation = _read_geometry(feature.get("geometry"), find_index(_label(feature, path), names))
            except InputError as error:
                raise InputError(f"{path}: feature {number}: {error}") from None
            if annotation:
                annotations.append(annotation)
        images[image] = AnnotatedImage(image, index.stem(image), parent_of(index.stem(image)), tuple(annotations))
    if not images:
        raise InputError(f"{src}: none of the annotated images is there")
    return AnnotatedSet(DatasetInfo(name=src.resolve().name, class_names=names), list(images.values()))


def _list_features(path: Path) -> list[dict[str, Any]] | None:
    """The features of a collection, of a list or of one alone; None for any other JSON."""
    values = load_json(path)
    if isinstance(values, dict):
        values = values.get("features") if values.get("type") == "FeatureCollection" else [values]
    if not isinstance(values, list):
        raise InputError(f"{path}: features is {values!r:.40}, not a list")
    if all(isinstance(value, dict) and value.get("type") == "Feature" for value in values):
        return values
    if path.suffix.lower() == ".geojson":
        raise InputError(f"{path}: holds something else than features")
    return None


def _image_stem(path: Path) -> str:
    """a.geojson, and a.tif.geojson, belong to a.tif."""
    inner = Path(path.stem)
    return inner.stem if inner.suffix.lower() in IMAGE_SUFFIXES else path.stem


def _label(feature: dict[str, Any], path: Path) -> str:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    label = properties.get("classification")
    label = label.get("name") if isinstance(label, dict) else label
    for key in ("class", "label"):
        label = properties.get(key) if label is None else label
    if label is None:
        return _ONLY_CLASS
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"{path}: a feature's class is {label!r:.60}, not a name")
    return label.strip()


def _read_geometry(geometry: Any, class_index: int) -> Annotation | None:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in _WITHOUT_AREA:
        return None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"a geometry of type {kind!r:.40} is not read")
    coordinates = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list):
        raise InputError(f"coordinates are {coordinates!r:.40}, not a list")
    rings = tuple(build_rings(polygon) for polygon in polygons)
    return Annotation(class_index, rings, is_instance=class_index not in (0, 255))

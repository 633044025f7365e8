"""GeoJSON in pixels, as exported by QuPath: one file per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import IMAGE_SUFFIXES
from steelgen.data.importers.names import annotate, collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_rings
from steelgen.data.importers.sources import ImageIndex, build_set, error_location, list_files
from steelgen.errors import InputError
from steelgen.files import load_json

_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_DEFAULT_CLASS = "annotation"
"""Class of features without a class."""


def read_geojson(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads *.geojson, and *.json with features, each for the image of the same name below the folder.

    The class is QuPath's classification, or the property `class` or `label`. `Ignore*` marks pixels to ignore. Points
    and lines have no area and are skipped.
    """
    paths = list_files(src, (".geojson", ".json"))
    features = {path: found for path in paths if (found := _list_features(path)) is not None}
    if not features:
        raise InputError(f"{src}: no GeoJSON files with features found")
    labels = {_label(feature, path): path for path, found in features.items() for feature in found}
    names = collect_names(labels, options.class_names)
    index = ImageIndex(src, options.skip_missing)
    images: dict[Path, AnnotatedImage] = {}
    for path, found in features.items():
        image = index.require_stem(_image_stem(path), path)
        if image is None:
            continue
        if image in images:
            raise InputError(f"{path}: another file also annotates {image.name}")
        annotations: list[Annotation] = []
        for number, feature in enumerate(found, start=1):
            with error_location(f"{path}: feature {number}"):
                annotations += _read_geometry(feature.get("geometry"), find_index(_label(feature, path), names))
        images[image] = AnnotatedImage(image, index.stem(image), annotations=tuple(annotations))
    return build_set(src, names, images.values())


def _list_features(path: Path) -> list[dict[str, Any]] | None:
    """Returns the features of a collection, a list or a single feature; None for any other JSON."""
    values = load_json(path)
    if isinstance(values, dict):
        values = values.get("features") if values.get("type") == "FeatureCollection" else [values]
    if not isinstance(values, list):
        raise InputError(f"{path}: features must be a list, got {values!r:.40}")
    if all(isinstance(value, dict) and value.get("type") == "Feature" for value in values):
        return values
    if path.suffix.lower() == ".geojson":
        raise InputError(f"{path}: must contain features only")
    return None


def _image_stem(path: Path) -> str:
    """Returns the stem of the image a.tif for a.geojson and a.tif.geojson."""
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
        return _DEFAULT_CLASS
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"{path}: the class of a feature must be text, got {label!r:.60}")
    return label.strip()


def _read_geometry(geometry: Any, class_index: int) -> list[Annotation]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in _WITHOUT_AREA:
        return []
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"geometry type {kind!r:.40} is not supported")
    coordinates = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list):
        raise InputError(f"coordinates must be a list, got {coordinates!r:.40}")
    return [annotate(class_index, *map(build_rings, polygons))]

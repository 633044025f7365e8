"""The MA-island set of Iren et al., Scientific Data 8, 140 (2021), in the layout in which it is published.

PNG/ or TIFF/            the images; excluded_PNG/ holds images that its authors left out
*_polygon.csv            image_url;point;polygon, the last two Python literals, one row an island
*_POI.csv                optional; points of interest
*_metadata.csv           optional; image_url,type,temperature
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon, parse_literal
from steelgen.data.importers.sources import base_name, list_files, read_csv, read_csv_header
from steelgen.errors import InputError

_SOURCE = "Iren et al., Scientific Data 8, 140 (2021), doi 10.1038/s41597-021-00926-7"


def read_ma_islands(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the MA-island set; an image without any polygon is all background.

    `type` stays text ("01" and "1" are different steels). Each name in a column `annotator` of the polygon CSV, where
    there is one, is an annotator.

    Raises:
        InputError: if a folder or column is missing, a row cannot be read or names an image that is not there.
    """
    images = _list_images(src, options.include_excluded)
    left_out = set() if options.include_excluded else {path.stem for path in _list_excluded(src)}
    polygon_csv, metadata_csv, poi_csv = _find_tables(src, options.poi_columns)
    annotations: dict[str, list[Annotation]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for number, row in read_csv(polygon_csv, ("image_url", "polygon")):
        stem = _stem(row["image_url"])
        if _is_wanted(stem, images, left_out, options, f"{polygon_csv}:{number}"):
            try:
                polygon = build_polygon(parse_literal(row["polygon"]))
            except InputError as error:
                raise InputError(f"{polygon_csv}:{number}: {error}") from None
            annotations.setdefault(stem, []).append(Annotation(1, (polygon,), annotator=row.get("annotator", "")))
    if metadata_csv:
        for number, row in read_csv(metadata_csv, ("image_url",)):
            stem = _stem(row["image_url"])
            if metadata.setdefault(stem, _known(row)) != _known(row):
                raise InputError(f"{metadata_csv}:{number}: a second, different row for {row['image_url']}")
    if poi_csv:
        _add_points(poi_csv, options.poi_columns, metadata)
    info = DatasetInfo(
        name="ma_islands", class_names=["background", "ma_island"], licence="CC0 (as reported)", source=_SOURCE
    )
    return AnnotatedSet(
        info,
        [
            AnnotatedImage(
                path=path,
                stem=stem,
                parent=stem,
                annotations=tuple(annotations.get(stem, ())),
                annotators=tuple(sorted({annotation.annotator for annotation in annotations.get(stem, ())})) or ("",),
                metadata=metadata.get(stem, {}),
            )
            for stem, path in sorted(images.items())
        ],
    )


def _list_images(src: Path, include_excluded: bool) -> dict[str, Path]:
    folder = _find_folder(src, "PNG") or _find_folder(src, "TIFF")
    if folder is None:
        raise InputError(f"{src}: has neither PNG/ nor TIFF/ with the images")
    images: dict[str, Path] = {}
    for path in [*list_files(folder), *(_list_excluded(src) if include_excluded else [])]:
        if path.stem in images:
            raise InputError(f"{path}: {images[path.stem]} has the same stem")
        images[path.stem] = path
    if not images:
        raise InputError(f"{folder}: holds no images")
    return images


def _list_excluded(src: Path) -> list[Path]:
    folder = _find_folder(src, "excluded_PNG")
    return list_files(folder) if folder else []


def _find_folder(src: Path, name: str) -> Path | None:
    """The folder of a name in `src` or up to two levels below it, where the unpacked zip has put it."""
    for pattern in (name, f"[!._]*/{name}", f"[!._]*/[!._]*/{name}"):
        for folder in sorted(src.glob(pattern)):
            if folder.is_dir():
                return folder
    return None


def _find_tables(src: Path, poi_columns: tuple[str, str]) -> tuple[Path, Path | None, Path | None]:
    """The polygon, metadata and points CSV, told apart by their columns; the .pickle twins are never opened."""
    polygons, metadata, points = [], [], []
    image_column, point_column = (name.lower() for name in poi_columns)
    for path in sorted(src.iterdir()):
        if path.suffix.lower() != ".csv" or path.name.startswith("."):
            continue
        columns = read_csv_header(path)
        if {"image_url", "polygon"} <= set(columns):
            polygons.append(path)
        elif {image_column, point_column} <= set(columns):
            points.append(path)
        elif "poi" in path.stem.lower():
            raise InputError(
                f"{path}: no columns {image_column!r} and {point_column!r}; name them with --poi-columns "
                f"(has: {', '.join(columns)[:200]})"
            )
        elif "image_url" in columns:
            metadata.append(path)
    if not polygons:
        raise InputError(f"{src}: no CSV with the columns image_url and polygon")
    for found in (polygons, metadata, points):
        if len(found) > 1:
            raise InputError(f"{found[1]}: has the same columns as {found[0].name}; keep one of them")
    return polygons[0], metadata[0] if metadata else None, points[0] if points else None


def _is_wanted(stem: str, images: dict[str, Path], left_out: set[str], options: ReadOptions, place: str) -> bool:
    if stem in images:
        return True
    if stem in left_out or options.skip_missing:
        return False
    raise InputError(f"{place}: no image {stem!r:.120} (--skip-missing leaves such rows out)")


def _add_points(path: Path, columns: tuple[str, str], metadata: dict[str, dict[str, Any]]) -> None:
    image_column, point_column = (name.lower() for name in columns)
    for number, row in read_csv(path, columns):
        try:
            # A single point is checked as the polygon that visits it three times.
            point = build_polygon([parse_literal(row[point_column])] * 3)[0]
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        metadata.setdefault(_stem(row[image_column]), {}).setdefault("points_of_interest", []).append(point.tolist())


def _known(row: dict[str, str]) -> dict[str, Any]:
    """The row without the image's name; a temperature as a number, everything else as the text it is."""
    values: dict[str, Any] = {name: text for name, text in row.items() if name not in ("image_url", "")}
    if "temperature" in values:
        with suppress(ValueError):
            values["temperature"] = int(values["temperature"])
    return values


def _stem(name: str) -> str:
    return Path(base_name(name)).stem

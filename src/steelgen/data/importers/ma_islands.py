"""The MA-island set of Iren et al., Scientific Data 8, 140 (2021), in its published layout.

PNG/ or TIFF/            images; excluded_PNG/ contains images that the authors excluded
*_polygon.csv            image_url;point;polygon, the last two as Python literals, one row per island
*_POI.csv                optional; points of interest
*_metadata.csv           optional; image_url,type,temperature
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo, index_by_stem
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_polygon, parse_literal
from steelgen.data.importers.sources import base_name, error_location, list_files, read_csv, read_csv_header
from steelgen.errors import InputError

_SOURCE = "Iren et al., Scientific Data 8, 140 (2021), doi 10.1038/s41597-021-00926-7"


def read_ma_islands(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the MA-island set; images without polygons are all background.

    `type` stays text ("01" and "1" are different steels). Each name in the column `annotator` of the polygon CSV, which
    is optional, is an annotator.
    """
    folder = _find_folder(src, "PNG") or _find_folder(src, "TIFF")
    if folder is None:
        raise InputError(f"{src}: has neither PNG/ nor TIFF/ with the images")
    excluded_folder = _find_folder(src, "excluded_PNG")
    excluded = list_files(excluded_folder) if excluded_folder else []
    images = index_by_stem([*list_files(folder), *(excluded if options.include_excluded else [])])
    if not images:
        raise InputError(f"{folder}: contains no images")
    excluded_stems = {path.stem for path in excluded}
    polygon_csv, metadata_csv, poi_csv = _find_tables(src, options.poi_columns)
    annotations: dict[str, list[Annotation]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for number, row in read_csv(polygon_csv, ("image_url", "polygon")):
        stem = _stem(row["image_url"])
        if stem in images:
            with error_location(f"{polygon_csv}:{number}"):
                polygon = build_polygon(parse_literal(row["polygon"]))
            annotations.setdefault(stem, []).append(Annotation(1, (polygon,), annotator=row.get("annotator", "")))
        elif stem not in excluded_stems and not options.skip_missing:
            raise InputError(f"{polygon_csv}:{number}: no image {stem!r:.120} (--skip-missing skips it)")
    for number, row in read_csv(metadata_csv, ("image_url",)) if metadata_csv else ():
        known = _parse_metadata(row)
        if metadata.setdefault(_stem(row["image_url"]), known) != known:
            raise InputError(f"{metadata_csv}:{number}: a second, different row for {row['image_url']}")
    image_column, point_column = (name.lower() for name in options.poi_columns)
    for number, row in read_csv(poi_csv, options.poi_columns) if poi_csv else ():
        with error_location(f"{poi_csv}:{number}"):
            # The check of polygons needs three points.
            point = build_polygon([parse_literal(row[point_column])] * 3)[0]
        found = metadata.setdefault(_stem(row[image_column]), {})
        found.setdefault("points_of_interest", []).append(point.tolist())
    info = DatasetInfo(
        name="ma_islands", class_names=["background", "ma_island"], licence="CC0 (as reported)", source=_SOURCE
    )
    return AnnotatedSet(
        info,
        [
            AnnotatedImage(
                path,
                parent=stem,
                annotations=tuple(annotations.get(stem, ())),
                annotators=tuple(sorted({annotation.annotator for annotation in annotations.get(stem, ())})) or ("",),
                metadata=metadata.get(stem, {}),
            )
            for stem, path in sorted(images.items())
        ],
    )


def _find_folder(src: Path, name: str) -> Path | None:
    """Finds a folder in `src` or up to two levels below it, as in the unpacked zip."""
    for pattern in (name, f"[!._]*/{name}", f"[!._]*/[!._]*/{name}"):
        for folder in sorted(src.glob(pattern)):
            if folder.is_dir():
                return folder
    return None


def _find_tables(src: Path, poi_columns: tuple[str, str]) -> tuple[Path, Path | None, Path | None]:
    """Finds the polygon, metadata and POI CSV by their columns; the .pickle copies are never opened."""
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
                f"{path}: no columns {image_column!r} and {point_column!r} (has: {', '.join(columns)[:200]}); set "
                "--poi-columns"
            )
        elif "image_url" in columns:
            metadata.append(path)
    if not polygons:
        raise InputError(f"{src}: no CSV with the columns image_url and polygon")
    for found in (polygons, metadata, points):
        if len(found) > 1:
            raise InputError(f"{found[1]}: has the same columns as {found[0].name}; keep only one of them")
    return polygons[0], metadata[0] if metadata else None, points[0] if points else None


def _parse_metadata(row: dict[str, str]) -> dict[str, Any]:
    """Returns a row without the image's name, with the temperature as a number and the rest as text."""
    values: dict[str, Any] = {name: text for name, text in row.items() if name not in ("image_url", "")}
    if "temperature" in values:
        with suppress(ValueError):
            values["temperature"] = int(values["temperature"])
    return values


def _stem(name: str) -> str:
    return Path(base_name(name)).stem

"""`describe`: latents of islands as a table, charts, and clusters."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen import __version__
from steelgen.data.cache import Micrographs
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import find_images, list_images, list_splits, load_dataset_info, load_mask, load_metadata
from steelgen.data.images import load_image, save_image, to_channels
from steelgen.errors import InputError
from steelgen.evaluation.clusters import Clusters, compute_adjusted_rand, compute_occupancy, find_clusters
from steelgen.evaluation.describe_pictures import (
    draw_clusters,
    draw_layout,
    draw_occupancy,
    draw_scatter,
    find_plane,
)
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.islands import IslandSet, describe_islands
from steelgen.evaluation.sets import find_generated
from steelgen.files import check_output_free, new_folder, save_json
from steelgen.generators.describing import Describer, load_describer
from steelgen.generators.manifold import draw_manifold
from steelgen.generators.saved import hash_generator

TABLE_FILE = "islands.csv"
_MANIFOLD_ACROSS = 12
_MOST_CONDITIONS = 24
"""Largest number of distinct values for which a column gets occupancies."""


@dataclass(frozen=True)
class _Source:
    """Images of a split or of a samples folder."""

    name: str
    micrographs: Micrographs
    files: list[str]
    """Path of each image relative to the described folder."""
    factor: float
    """Scale relative to the generator's training micrographs: image pixels per micrograph pixel."""


def describe(
    generator: Path,
    folder: Path,
    out: Path,
    splits: Sequence[str] = (),
    color_by: str = "class",
    num_clusters: int = 4,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Describes all islands of a dataset folder or a samples folder.

    Writes islands.csv and, if pyarrow is installed, islands.parquet: one row per island; manifold.png: decoded images
    over the first two latents; scatter.png and layout.png: the islands at their latents, as dots and as images;
    clusters.png: typical islands of each cluster; occupancy.csv and occupancy.png: cluster shares over the values of
    `color_by`; description.json: summary and provenance.

    Args:
        generator: a trained generator of kind rvae.
        folder: a dataset folder or samples folder.
        out: output folder; must be new or empty.
        splits: splits of a dataset folder; empty for all.
        color_by: a column of the table: class, cluster, split, any key of metadata.jsonl, or a measurement.
        num_clusters: number of k-means clusters of the latents.
        report: receives (images done, total images).

    Returns:
        The contents of description.json.

    Raises:
        InputError: if the generator cannot describe islands, there are none, or the column is unknown.
    """
    check_output_free(out)
    if num_clusters < 1:
        raise InputError(f"clusters {num_clusters}: must be at least 1")
    describer = load_describer(generator)
    metadata = load_metadata(folder)
    found, rows = [], []
    sources = _load_sources(folder, splits, describer)
    total, done = sum(len(source.micrographs) for source in sources), 0
    for source in sources:
        for index in range(len(source.micrographs)):
            report(done, total)
            islands = describe_islands(source.micrographs.select([index]), describer, source.factor)
            found.append(islands)
            rows += _list_rows(islands, source, index, metadata.get(source.files[index], {}))
            done += 1
    report(done, total)
    if not rows:
        centers = describer.list_centers()
        raise InputError(
            f"{folder}: no {centers.kind} with at least {centers.min_area} px inside the images' edges; "
            "train an rvae with a lower min_area or other classes"
        )
    latents = np.concatenate([islands.description.latents for islands in found])
    clusters = find_clusters(latents, num_clusters)
    for row, label in zip(rows, clusters.labels, strict=True):
        row["cluster"] = int(label)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = _take_column(rows, columns, color_by, folder)
    plane = find_plane(latents, np.array([row["area_px"] for row in rows]))
    with new_folder(out) as working:
        _save_table(working / TABLE_FILE, columns, rows)
        written = _save_parquet(working / "islands.parquet", columns, rows)
        save_image(working / "manifold.png", draw_manifold(describer, _MANIFOLD_ACROSS))
        save_image(working / "scatter.png", draw_scatter(plane, values, color_by, _pick_palette(describer, color_by)))
        show = _Gallery(found).show
        save_image(working / "layout.png", draw_layout(plane, show))
        save_image(working / "clusters.png", draw_clusters(clusters, show))
        summary = {
            "steelgen_version": __version__,
            "generator": str(generator),
            "generator_sha256": hash_generator(generator),
            "folder": str(folder),
            "splits": [source.name for source in sources],
            "color_by": color_by,
            "islands": len(rows),
            "parquet": written,
            "clusters": _summarize_clusters(clusters, rows),
            **_save_occupancy(working, clusters, values, color_by),
        }
        save_json(working / "description.json", to_json(summary))
    return to_json(summary)


class _Gallery:
    """Patches of all islands by row, cut on demand."""

    def __init__(self, found: Sequence[IslandSet]) -> None:
        self._found = found
        self._ends = np.cumsum([len(islands) for islands in found])

    def show(self, row: int) -> NDArray[np.uint8]:
        """See `IslandSet.show`."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._found[part].show(row - int(self._ends[part]) + len(self._found[part]))


def _load_sources(folder: Path, splits: Sequence[str], describer: Describer) -> list[_Source]:
    channels = describer.geometry.in_channels
    if (folder / "sampling.json").is_file() or (folder / "samples").is_dir():
        if splits:
            raise InputError(f"--split {splits[0]}: {folder} is a samples folder, which has no splits; omit --split")
        return [_load_samples(folder, describer)]
    present = list_splits(folder)
    for split in splits:
        if split not in present:
            raise InputError(f"{folder}: no split {split!r} (present: {', '.join(present) or 'none'})")
    sources = []
    for split in splits or present:
        micrographs = load_micrographs(folder, split, channels)
        images = {path.stem: path for path in list_images(find_images(folder, split))}
        files = [images[stem].relative_to(folder).as_posix() for stem in micrographs.stems]
        sources.append(_Source(split, micrographs, files, 1.0))
    if not sources:
        load_dataset_info(folder)  # raises an InputError that names what is missing
        raise InputError(f"{folder}: contains no images")
    return sources


def _load_samples(folder: Path, describer: Describer) -> _Source:
    generated = find_generated(folder)
    if generated.masks is None and (describer.sees_island or describer.list_centers().kind != "grid"):
        raise InputError(f"{folder}: has no masks, which this generator needs to find islands")
    info, cut = load_dataset_info(folder), generated.sampling
    images = [to_channels(load_image(path), describer.geometry.in_channels) for path in generated.images]
    if generated.masks is None:
        masks = [np.full(image.shape[:2], info.ignore_index, np.uint8) for image in images]
    else:
        masks = [load_mask(path, info) for path in generated.masks]
    factor = cut.image_size / cut.crop_size if cut.image_size and cut.crop_size else 1.0
    files = [path.relative_to(folder).as_posix() for path in generated.images]
    micrographs = Micrographs(info, [path.stem for path in generated.images], images, masks)
    return _Source("samples", micrographs, files, factor)


def _list_rows(islands: IslandSet, source: _Source, index: int, metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Builds the table row of each island of one image; the cluster is filled in later."""
    info = islands.micrographs.info
    pixel_size = metadata.get("pixel_size_um", info.pixel_size_um)
    known = {key: value for key, value in metadata.items() if isinstance(value, str | int | float)}
    half = islands.geometry.crop_size / 2
    rows = []
    for patch, latents, angle, shift, scale, error in zip(islands.patches, *islands.description, strict=True):
        row: dict[str, Any] = {
            "file": source.files[index],
            "split": source.name,
            "micrograph": source.micrographs.stems[index],
            "x": patch.center[1],
            "y": patch.center[0],
            "class": info.class_names[patch.label] if patch.label >= 0 else "",
            "cluster": -1,
            **{f"z{number}": float(value) for number, value in enumerate(latents, start=1)},
            "angle_deg": float(np.degrees(angle)),
            "shift_x_px": float(shift[0]) * half,
            "shift_y_px": float(shift[1]) * half,
            "scale": float(scale),
            "error": float(error),
            "area_px": patch.area,
            "aspect_ratio": patch.aspect_ratio,
            "long_axis_deg": float(np.degrees(patch.angle)),
        }
        if pixel_size is not None:
            row["area_um2"] = patch.area * pixel_size**2
        rows.append({**{key: value for key, value in known.items() if key not in row and key != "file_name"}, **row})
    return rows


def _take_column(rows: list[dict[str, Any]], columns: list[str], name: str, folder: Path) -> list[Any]:
    if name not in columns:
        raise InputError(f"--color-by {name}: no such column for {folder}; known: {', '.join(columns)}")
    values = [row.get(name) for row in rows]
    if all(isinstance(value, int | float) for value in values):
        return values
    # Missing for some images, or of mixed types: treat as text.
    return ["" if value is None else str(value) for value in values]


def _pick_palette(describer: Describer, color_by: str) -> dict[str, tuple[int, int, int]]:
    """Returns the colors of the classes; empty for other columns."""
    if color_by != "class":
        return {}
    return dict(zip(describer.info.class_names, describer.info.palette, strict=True))


def _save_table(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({key: _format_cell(value) for key, value in row.items()} for row in rows)


def _format_cell(value: Any) -> Any:
    """Formats floats with six digits; empty if not finite."""
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def _save_parquet(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> bool:
    """Writes the table as Parquet; returns False if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return False
    # Parquet columns have one type: mixed columns become text.
    by_name = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        by_name[name] = [value if value is None or not mixed else str(value) for value in values]
    pyarrow.parquet.write_table(pyarrow.table(by_name), path)
    return True


def _summarize_clusters(clusters: Clusters, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    summary = []
    for number, center in enumerate(clusters.centers):
        own = np.flatnonzero(clusters.labels == number)
        summary.append(
            {
                "cluster": number,
                "islands": len(own),
                "share": len(own) / len(rows),
                "center": center,
                "median_area_px": np.median([rows[row]["area_px"] for row in own]),
                "median_aspect_ratio": np.median([rows[row]["aspect_ratio"] for row in own]),
            }
        )
    return summary


def _save_occupancy(folder: Path, clusters: Clusters, values: list[Any], color_by: str) -> dict[str, Any]:
    """Writes cluster shares by condition and returns them with the adjusted Rand index; skips other columns."""
    if color_by == "cluster" or not 1 < len(set(values)) <= _MOST_CONDITIONS:
        return {}
    count = len(clusters.centers)
    occupancy = compute_occupancy(clusters.labels, values, count)
    with open(folder / "occupancy.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([color_by, "islands", "cluster", "share", "low", "high"])
        for condition, shares in occupancy.items():
            for cluster, (share, (low, high)) in enumerate(shares):
                islands = values.count(condition)
                writer.writerow([condition, islands, cluster, f"{share:.6g}", f"{low:.6g}", f"{high:.6g}"])
    save_image(folder / "occupancy.png", draw_occupancy(occupancy, color_by))
    agreement = compute_adjusted_rand(clusters.labels, np.array([str(value) for value in values]))
    return {
        "occupancy": {str(key): [share for share, _ in shares] for key, shares in occupancy.items()},
        "adjusted_rand": agreement,
    }

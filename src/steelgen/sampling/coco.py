"""Masks → COCO's instance annotations: one an island, as polygon and as run lengths."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo, load_mask
from steelgen.data.islands import find_islands
from steelgen.data.runlength import encode_runs
from steelgen.files import new_file
from steelgen.sampling.formats import Layout

COCO_FILE = "coco.json"


def save_coco(out: Path, layout: Layout, count: int, info: DatasetInfo) -> None:
    """Writes coco.json for images 0 to count − 1: class 0 is the background, every island of another class an object.

    `segmentation` holds the island's outline along its pixel borders, a hole joined to the outline by a bridge of no
    width; `segmentation_rle` the same as uncompressed run lengths. Written as it goes, so that any number of images
    takes the same memory.
    """
    categories = [{"id": index, "name": name} for index, name in enumerate(info.class_names) if index > 0]
    with (
        new_file(out / COCO_FILE) as working,
        tempfile.TemporaryFile("w+", dir=out, encoding="utf-8") as rest,
        open(working, "w", encoding="utf-8") as file,
    ):
        described = json.dumps({"description": f"{info.name}, synthetic", "synthetic": True})
        file.write(f'{{"info": {described},\n"categories": {json.dumps(categories)},\n"images": [')
        identity = 0
        for index in range(count):
            mask = load_mask(layout.label_path(out, index), info)
            image = {
                "id": index + 1,
                "file_name": layout.sample_path(Path(), index).as_posix(),
                "height": mask.shape[0],
                "width": mask.shape[1],
            }
            file.write(("" if index == 0 else ",\n") + json.dumps(image))
            for island in iterate_islands(mask, info):
                identity += 1
                row = {"id": identity, "image_id": index + 1, **island}
                rest.write(("" if identity == 1 else ",\n") + json.dumps(row))
        file.write('],\n"annotations": [')
        rest.seek(0)
        shutil.copyfileobj(rest, file)
        file.write("]}\n")


def iterate_islands(mask: NDArray[np.uint8], info: DatasetInfo) -> Iterator[dict[str, Any]]:
    """The islands of a mask as COCO objects, without ids.

    Args:
        mask: (H, W) class indices or ignore_index.
    """
    for category in range(1, info.num_classes):
        for island in find_islands(mask, category):
            top, left = island.window[0].start, island.window[1].start
            height, width = island.footprint.shape
            whole = np.zeros(mask.shape, bool)
            whole[island.window] = island.footprint
            yield {
                "category_id": category,
                "iscrowd": 0,
                "area": int(island.footprint.sum()),
                "bbox": [left, top, width, height],
                "segmentation": [(trace_outline(island.footprint) + np.array((left, top))).ravel().tolist()],
                "segmentation_rle": {"size": list(mask.shape), "counts": encode_counts(whole)},
            }


def encode_counts(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts of an (H, W) mask: lengths of background and foreground in turn, down the columns."""
    runs = encode_runs(mask)
    ends = np.concatenate([[0], runs.sum(axis=1)])
    counts = np.stack([runs[:, 0] - ends[:-1], runs[:, 1]], axis=1).ravel().tolist()
    rest = mask.size - int(ends[-1])
    return [*counts, rest] if rest or not counts else counts


def trace_outline(island: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The border of an island as one ring of (x, y) pixel corners, (N, 2).

    Holes run the other way round and are joined to the outline by a bridge that is walked there and back, parts that
    touch at a corner by that corner, so that the area the ring winds around is that of the island, exactly.
    """
    y, x = np.nonzero(island)
    # Pixels share whole edges, so that their union takes no noding.
    outline = shapely.coverage_union_all(shapely.box(x, y, x + 1, y + 1))
    # Normalized, outlines run one way round and holes the other.
    rings = shapely.get_rings(shapely.get_parts(shapely.normalize(shapely.simplify(outline, 0))))
    joined, *others = (shapely.get_coordinates(ring)[:-1].astype(np.int64) for ring in rings)
    for other in others:
        # Rectilinear paths have few corners: all pairs is little work.
        distance = np.abs(joined[:, None] - other[None]).sum(axis=2)
        at, first = np.unravel_index(int(distance.argmin()), distance.shape)
        there = np.concatenate([other[first:], other[: first + 1]])
        joined = np.concatenate([joined[: at + 1], there, joined[at:]])
    return joined

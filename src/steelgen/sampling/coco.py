"""Masks → COCO's instance annotations: one an island, as polygon and as run lengths."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo, load_mask
from steelgen.data.islands import find_islands
from steelgen.data.runlength import encode_runs
from steelgen.files import new_file
from steelgen.sampling.formats import Layout

COCO_FILE = "coco.json"
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""(x, y) along a pixel border: right, down, left, up."""


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
    rings = sorted(_trace_rings(island), key=lambda ring: -abs(_signed_area(ring)))
    joined = rings[0]
    for hole in rings[1:]:
        # Ring and hole are rectilinear paths of few corners: all pairs is little work.
        distance = np.abs(joined[:, None] - hole[None]).sum(axis=2)
        at, first = np.unravel_index(int(distance.argmin()), distance.shape)
        there = np.concatenate([hole[first:], hole[: first + 1]])
        joined = np.concatenate([joined[: at + 1], there, joined[at:]])
    return joined


def _trace_rings(island: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Closed rings of corners along pixel borders, the island on the right of the direction walked (y points down)."""
    padded = np.pad(island, 1)
    here = padded[1:, 1:], padded[1:, :-1], padded[:-1, :-1], padded[:-1, 1:]
    below_right, below_left, above_left, above_right = here
    # From the corner (x, y), a step along a border is taken where the pixel to its right is in, that to its left out.
    leaves = np.stack(
        [
            below_right & ~above_right,
            below_left & ~below_right,
            above_left & ~below_left,
            above_right & ~above_left,
        ]
    )
    rings = []
    while leaves.any():
        direction, y, x = (int(value) for value in np.argwhere(leaves)[0])
        corners = []
        while leaves[direction, y, x]:
            leaves[direction, y, x] = False
            corners.append((x, y))
            dx, dy = _STEPS[direction]
            x, y = x + int(dx), y + int(dy)
            # Turning right first keeps pixels that touch at a corner apart.
            direction = next(
                (turn for turn in ((direction + 1) % 4, direction, (direction + 3) % 4) if leaves[turn, y, x]),
                direction,
            )
        rings.append(_drop_straight(np.array(corners)))
    return rings


def _drop_straight(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ring without the corners at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[(before != after).any(axis=1)]


def _signed_area(ring: NDArray[np.int64]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2

"""COCO files of a study: the true instances of the test tiles, and the predicted ones of each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.data.runlength import compress_counts, count_runs, decode_runs, encode_runs, parse_counts
from steelgen.errors import InputError
from steelgen.evaluation.instances.data import InstanceData, Tile
from steelgen.evaluation.instances.matching import Predicted
from steelgen.files import Record, load_json, parse_record, save_json

TRUTH_FILE = "truth.coco.json"
"""True instances of the test tiles."""


class _Segmentation(Record):
    size: tuple[int, int]
    counts: str


class _Result(Record):
    """A predicted instance in COCO's format of results."""

    image_id: int
    category_id: Annotated[int, Field(ge=1, le=255)]
    score: Annotated[float, Field(ge=0, le=1)]
    segmentation: _Segmentation


def save_truth(path: Path, data: InstanceData) -> None:
    """Writes the true instances of the test tiles as a COCO file; tile n, from 0, is image n + 1.

    The category of a class is its index + 1.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, tile in enumerate(data.test_tiles, start=1):
        height, width = tile.counted.shape
        row = {"id": number, "file_name": f"{tile.stem}.png", "left": tile.left, "top": tile.top}
        images.append({**row, "width": width, "height": height})
        for label, mask in zip(tile.truth.labels, tile.truth.masks, strict=True):
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "iscrowd": 0,
                    "area": len(rows),
                    "bbox": [int(value) for value in box],
                    "segmentation": _encode(mask),
                }
            )
    categories = [{"id": index + 1, "name": data.info.class_names[index]} for index in data.things]
    save_json(path, {"images": images, "categories": categories, "annotations": annotations})


def describe_predicted(number: int, predicted: Predicted) -> list[dict[str, Any]]:
    """Converts the predicted instances of tile `number`, from 0, to COCO results."""
    return [
        {
            "image_id": number + 1,
            "category_id": int(label) + 1,
            "score": float(score),
            "segmentation": _encode(mask),
        }
        for label, score, mask in zip(*predicted, strict=True)
    ]


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": compress_counts(count_runs(encode_runs(mask), mask.size))}


def load_predicted(path: Path, tiles: Sequence[Tile]) -> Iterator[Predicted]:
    """Reads the predicted instances of each tile from a file of COCO results.

    Raises:
        InputError: if the file is missing or damaged, or of other tiles.
    """
    values = load_json(path)
    if not isinstance(values, list):
        raise InputError(f"{path}: must be a list of COCO results")
    by_tile: list[list[_Result]] = [[] for _ in tiles]
    for index, value in enumerate(values):
        result = parse_record(value, _Result, f"{path}: result {index + 1}")
        if not 1 <= result.image_id <= len(tiles):
            raise InputError(f"{path}: result {index + 1}: image_id {result.image_id} of {len(tiles)} tiles")
        if result.segmentation.size != tiles[result.image_id - 1].counted.shape:
            raise InputError(f"{path}: result {index + 1}: size {result.segmentation.size} is not that of its tile")
        by_tile[result.image_id - 1].append(result)
    for tile, results in zip(tiles, by_tile, strict=True):
        shape = tile.counted.shape
        try:
            masks = [decode_runs(parse_counts(result.segmentation.counts), *shape) for result in results]
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        yield Predicted(
            np.array([result.category_id - 1 for result in results], np.int64),
            np.array([result.score for result in results], np.float64),
            np.array(masks, bool).reshape(-1, *shape),
        )

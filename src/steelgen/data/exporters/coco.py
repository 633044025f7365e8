"""COCO: SPLIT/NAME.png and annotations/instances_SPLIT.json, with one object per island or instance."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.exporters.pairs import ExportPair
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.data.outlines import Region, iterate_regions
from steelgen.files import new_file


class CocoImage(NamedTuple):
    """An image of a COCO file."""

    file_name: str
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint16] | None = None
    extra: dict[str, Any] = {}
    """Additional keys of its row."""


def write_coco(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes one COCO file per split, with the provenance of each image; see `save_coco`."""
    for split, group in groupby(pairs, key=lambda pair: pair.item.split):
        save_coco(out / "annotations" / f"instances_{split}.json", info, _save_images(out / split, group))


def _save_images(folder: Path, pairs: Iterable[ExportPair]) -> Iterator[CocoImage]:
    for pair in pairs:
        name = f"{pair.item.name}.png"
        save_micrograph(folder / name, pair.image)
        yield CocoImage(name, pair.mask, pair.instances, {"provenance": pair.item.provenance})


def save_coco(path: Path, info: DatasetInfo, images: Iterable[CocoImage], **described: Any) -> None:
    """Writes a COCO file: class 0 is the background, each island or instance of another class an object.

    `segmentation` contains the outlines of an object's parts along pixel borders, with zero-width bridges to holes, and
    `segmentation_rle` the same as uncompressed run lengths. The file is streamed, so memory does not grow with the
    number of images.

    Args:
        described: additional keys of `info`.
    """
    categories = [{"id": index, "name": name} for index, name in enumerate(info.class_names) if index > 0]
    with (
        new_file(path) as working,
        tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8") as rest,
        open(working, "w", encoding="utf-8") as file,
    ):
        file.write(f'{{"info": {json.dumps({"description": info.name, **described})},\n')
        file.write(f'"categories": {json.dumps(categories)},\n"images": [')
        identity = 0
        for number, image in enumerate(images, start=1):
            height, width = image.mask.shape
            row = {"id": number, "file_name": image.file_name, "height": height, "width": width, **image.extra}
            file.write(("" if number == 1 else ",\n") + json.dumps(row))
            for region in iterate_regions(image.mask, range(1, info.num_classes), image.instances):
                identity += 1
                described_region = {"id": identity, "image_id": number, **describe_region(region)}
                rest.write(("" if identity == 1 else ",\n") + json.dumps(described_region))
        file.write('],\n"annotations": [')
        rest.seek(0)
        shutil.copyfileobj(rest, file)
        file.write("]}\n")


def describe_region(region: Region) -> dict[str, Any]:
    """Converts a region to a COCO object, without ids."""
    height, width = region.pixels.shape
    return {
        "category_id": region.class_index,
        "iscrowd": 0,
        "area": region.area,
        "bbox": [region.left, region.top, width, height],
        "segmentation": [ring.ravel().tolist() for ring in region.trace()],
        "segmentation_rle": {"size": list(region.size), "counts": region.encode()},
    }

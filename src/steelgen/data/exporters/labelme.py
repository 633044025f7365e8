"""LabelMe: NAME.png and NAME.json beside it, a polygon a part of an island."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steelgen.data.exporters.pairs import ExportPair, save_image_as_png
from steelgen.data.folder import DatasetInfo
from steelgen.data.outlines import iterate_regions
from steelgen.files import save_json


def write_labelme(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes polygons whose holes are joined to the outline by a bridge; parts of one instance share a group_id.

    Ignored pixels are labelled `__ignore__`. The flags say which split an image is of, and whether it was generated.
    """
    labels = dict(enumerate(info.class_names)) | {info.ignore_index: "__ignore__"}
    for pair in pairs:
        item = pair.item
        height, width = pair.mask.shape
        shapes: list[dict[str, Any]] = []
        classes = [index for index in labels if index > 0]
        for number, region in enumerate(iterate_regions(pair.mask, classes, pair.instances), start=1):
            rings = region.trace()
            shapes += [
                {
                    "label": labels[region.class_index],
                    "points": ring.tolist(),
                    "group_id": number if len(rings) > 1 else None,
                    "shape_type": "polygon",
                    "flags": {},
                }
                for ring in rings
            ]
        save_image_as_png(out / f"{item.name}.png", pair.image)
        document = {
            "version": "5.5.0",
            "flags": {item.split: True, "generated": item.generated},
            "shapes": shapes,
            "imagePath": f"{item.name}.png",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        save_json(out / f"{item.name}.json", document)

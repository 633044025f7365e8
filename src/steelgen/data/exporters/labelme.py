"""LabelMe: NAME.png and NAME.json, with one polygon per part of an island."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steelgen.data.exporters.pairs import ExportPair, label_classes
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.data.outlines import iterate_regions
from steelgen.files import save_json


def write_labelme(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes polygons with bridges to holes; the parts of an instance share a group_id.

    Ignored pixels are labeled `__ignore__`. The flags contain the split, and whether the image was generated.
    """
    labels = label_classes(info)
    for pair in pairs:
        item = pair.item
        height, width = pair.mask.shape
        shapes: list[dict[str, Any]] = []
        for number, region in enumerate(iterate_regions(pair.mask, labels, pair.instances), start=1):
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
        save_micrograph(out / f"{item.name}.png", pair.image)
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

"""Pascal VOC: JPEGImages/, palette PNGs in SegmentationClass/, ImageSets/Segmentation/SPLIT.txt, labels.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from steelgen.data.exporters.pairs import ExportPair
from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.images import save_micrograph
from steelgen.data.instances import save_instances


def write_voc(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes the masks, with 255 for ignored pixels, and the instance maps if there are any."""
    lookup = np.arange(256, dtype=np.uint8)
    lookup[info.ignore_index] = 255
    lists = out / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for pair in pairs:
        name = pair.item.name
        save_micrograph(out / "JPEGImages" / f"{name}.png", pair.image)
        save_mask(out / "SegmentationClass" / f"{name}.png", lookup[pair.mask], info.palette)
        if pair.instances is not None:
            save_instances(out / "SegmentationObject" / f"{name}.png", pair.instances)
        with open(lists / f"{pair.item.split}.txt", "a", encoding="utf-8") as lines:
            lines.write(f"{name}\n")
    (out / "labels.txt").write_text("".join(f"{name}\n" for name in info.class_names), encoding="utf-8")

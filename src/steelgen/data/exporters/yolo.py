"""YOLO segmentation: images/SPLIT/, labels/SPLIT/NAME.txt with one polygon per line, data.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from steelgen.data.exporters.pairs import ExportPair
from steelgen.data.folder import SPLITS, DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.data.outlines import iterate_regions


def write_yolo(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes a line `class x y x y …` per part of an island or instance, x and y relative to the image size.

    YOLO has no background class: class 1 becomes 0. Zero-width bridges join holes to outlines.
    """
    import yaml

    splits = []
    for split, group in groupby(pairs, key=lambda pair: pair.item.split):
        splits.append(split)
        (out / "labels" / split).mkdir(parents=True)
        for pair in group:
            save_micrograph(out / "images" / split / f"{pair.item.name}.png", pair.image)
            height, width = pair.mask.shape
            lines = [
                " ".join([str(region.class_index - 1), *(f"{value:.9g}" for value in (ring / (width, height)).ravel())])
                for region in iterate_regions(pair.mask, range(1, info.num_classes), pair.instances)
                for ring in region.trace()
            ]
            text = "".join(line + "\n" for line in lines)
            (out / "labels" / split / f"{pair.item.name}.txt").write_text(text, encoding="utf-8")
    folders = {split: f"images/{split}" for split in SPLITS if split in splits}
    # Ultralytics requires a val split.
    folders.setdefault("val", folders.get("test", folders.get("train", "")))
    names = dict(enumerate(info.class_names[1:]))
    description = yaml.safe_dump({**folders, "names": names}, allow_unicode=True, sort_keys=False)
    (out / "data.yaml").write_text(description, encoding="utf-8")

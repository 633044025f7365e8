"""Pascal VOC: JPEGImages/ with palette PNGs in SegmentationClass/, objects in SegmentationObject/."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import SPLITS, DatasetInfo, list_images
from steelgen.data.images import is_colored, load_index_image
from steelgen.data.importers.legend import set_colors
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import list_files, parent_of, read_lines
from steelgen.errors import InputError


def read_voc(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a VOC tree; 255 is ignored, and the lists in ImageSets/Segmentation/, if any, become the splits.

    Masks in colors, as CVAT writes them, are read by labelmap.txt or another legend, see `legend`. Of others the
    class names come from `class_names` or labels.txt (one a line, background first), else they are numbered.

    Raises:
        InputError: if a folder is missing, a mask has no image, or a mask holds an index without a class.
    """
    masks = [path for path in list_images(src / "SegmentationClass") if path.suffix.lower() == ".png"]
    if not masks:
        raise InputError(f"{src / 'SegmentationClass'}: holds no PNG masks")
    by_stem = {path.stem: path for path in list_files(src / "JPEGImages")}
    colored = bool(options.colors) or is_colored(masks[0])
    names = [] if colored else _class_names(src, masks, options.class_names)
    lookup = np.arange(256, dtype=np.uint8)
    splits = _read_lists(src / "ImageSets" / "Segmentation")
    images = []
    for mask in masks:
        if mask.stem not in by_stem:
            if options.skip_missing:
                continue
            raise InputError(f"{mask}: has no image in JPEGImages/ (--skip-missing leaves it out)")
        objects = src / "SegmentationObject" / mask.name
        images.append(
            AnnotatedImage(
                path=by_stem[mask.stem],
                stem=mask.stem,
                parent=parent_of(mask.stem),
                masks=(IndexMask(mask, lookup, objects if objects.is_file() else None),),
                split=splits.get(mask.stem),
            )
        )
    if splits and not all(image.split for image in images):
        # VOC lists only what takes part in the benchmark.
        images = [image for image in images if image.split]
    if not images:
        raise InputError(f"{src}: no mask has an image")
    name = src.resolve().name
    if colored:
        # CVAT draws objects in colors, too, which are no ids.
        return AnnotatedSet(*set_colors(name, images, src, options))
    return AnnotatedSet(DatasetInfo(name=name, class_names=names), images)


def _class_names(src: Path, masks: list[Path], wanted: tuple[str, ...]) -> list[str]:
    if wanted:
        return list(wanted)
    labels = src / "labels.txt"
    if labels.is_file():
        return [line for line in read_lines(labels) if line not in ("", "__ignore__")]
    highest = 0
    for path in masks:
        present = np.unique(load_index_image(path))
        highest = max(highest, int(present[present < 255].max(initial=0)))
    return ["background", *(f"class_{number}" for number in range(1, highest + 1))]


def _read_lists(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.is_file():
            continue
        for stem in filter(None, read_lines(path)):
            if splits.setdefault(stem, split) != split:
                raise InputError(f"{path}: {stem!r:.80} is also in {splits[stem]}.txt")
    return splits

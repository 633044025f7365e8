"""Pascal VOC: JPEGImages/, palette PNGs in SegmentationClass/, objects in SegmentationObject/."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import SPLITS, list_images
from steelgen.data.images import find_mask_values, is_colored
from steelgen.data.importers.legend import build_colored_set
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import build_set, list_files, read_lines
from steelgen.data.palette import name_classes
from steelgen.errors import InputError


def read_voc(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a VOC tree; 255 is ignored, and the lists in ImageSets/Segmentation/, if any, become the splits.

    Masks in colors, as written by CVAT, are read by labelmap.txt or another legend, see `legend`; their instances are
    not read. Class names of other masks are from `class_names` or labels.txt (one per line, background first), or else
    are numbered.
    """
    masks = [path for path in list_images(src / "SegmentationClass") if path.suffix.lower() == ".png"]
    if not masks:
        raise InputError(f"{src / 'SegmentationClass'}: contains no PNG masks")
    by_stem = {path.stem: path for path in list_files(src / "JPEGImages")}
    splits = _read_lists(src / "ImageSets" / "Segmentation")
    images = []
    for mask in masks:
        if mask.stem in by_stem:
            objects = src / "SegmentationObject" / mask.name
            source = IndexMask(mask, instances=objects if objects.is_file() else None)
            images.append(AnnotatedImage(by_stem[mask.stem], mask.stem, masks=(source,), split=splits.get(mask.stem)))
        elif not options.skip_missing:
            raise InputError(f"{mask}: has no image in JPEGImages/ (--skip-missing skips it)")
    if splits and not all(image.split for image in images):
        # VOC only lists the images that are part of the benchmark.
        images = [image for image in images if image.split]
    if not images:
        raise InputError(f"{src}: no masks with an image found")
    if options.colors or is_colored(masks[0]):
        return build_colored_set(images, src, options)
    return build_set(src, _read_class_names(src, masks, options.class_names), images)


def _read_class_names(src: Path, masks: list[Path], wanted: tuple[str, ...]) -> list[str]:
    if wanted:
        return list(wanted)
    labels = src / "labels.txt"
    if labels.is_file():
        return [line for line in read_lines(labels) if line not in ("", "__ignore__")]
    return ["background", *name_classes(find_mask_values(masks))[1:]]


def _read_lists(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        for stem in filter(None, read_lines(path) if path.is_file() else ()):
            if splits.setdefault(stem, split) != split:
                raise InputError(f"{path}: {stem!r:.80} is also in {splits[stem]}.txt")
    return splits

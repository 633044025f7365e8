"""Label images beside their micrographs, as saved by napari and ilastik: class indices, object ids or colors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.images import find_mask_values, is_colored
from steelgen.data.importers.legend import build_colored_set
from steelgen.data.importers.names import is_background
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import ImageIndex, build_set, list_files
from steelgen.data.palette import name_classes
from steelgen.errors import InputError

_FOLDERS = ("label", "labels", "mask", "masks", "annotations", "segmentation", "segmentations")
_SUFFIX = re.compile(
    r"(.+?)[-_ .]+(labels?([-_ ]layer)?|masks?|seg|segmentation|annotations?|painted"
    r"|simple segmentation|object identities)",
    re.IGNORECASE,
)


def read_labels(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a_labels.tif, a-mask.png or "a_Simple Segmentation.tiff" beside a.tif, or labels/a.tif beside images/a.tif.

    Values are class indices; if no file contains 0, as with ilastik, the first class is 1. With `objects`, values are
    ids of objects of one class. Colors are read by their legend, see `legend`.
    """
    paths = list_files(src)
    stems = {path: stem for path in paths if (stem := _image_stem(path)) is not None}
    index = ImageIndex(src, options.skip_missing, (path for path in paths if path not in stems))
    images: dict[Path, AnnotatedImage] = {}
    for path, stem in stems.items():
        image = index.require_stem(stem, path)
        if image is None:
            continue
        if image in images:
            raise InputError(f"{path}: {images[image].masks[0].path.name} is also a label image of {image.name}")
        mask = IndexMask(path, instances=path if options.objects else None, holds_objects=options.objects)
        images[image] = AnnotatedImage(image, index.stem(image), masks=(mask,))
    if not images:
        raise InputError(f"{src}: no label images (a_labels.tif, a-mask.png, labels/a.tif) with a micrograph found")
    found = list(images.values())
    if options.objects:
        names = [name for name in options.class_names if not is_background(name)] or ["object"]
        if len(names) > 1:
            raise InputError(f"--class-names {','.join(names)}: --objects has only one class")
        return build_set(src, ["background", *names], found)
    masks = [image.masks[0].path for image in found]
    if options.colors or is_colored(masks[0]):
        return build_colored_set(found, src, options)
    try:
        values = find_mask_values(masks)
    except InputError as error:
        raise InputError(f"{error} (--objects reads ids of objects)") from None
    first = int(0 not in values)
    if first:
        lookup = np.array([255, *range(254), 255], np.uint8)
        found = [replace(image, masks=(replace(image.masks[0], lookup=lookup),)) for image in found]
    return build_set(src, list(options.class_names) or name_classes(values[values < 255] - first), found)


def _image_stem(path: Path) -> str | None:
    """Returns the stem of the micrograph of a label image; None for any other image."""
    stem = ImageIndex.stem(path)
    if match := _SUFFIX.fullmatch(stem):
        return match[1]
    return stem if path.parent.name.lower() in _FOLDERS else None

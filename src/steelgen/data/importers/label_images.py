"""Label pictures beside their images, as napari and ilastik save them: values or colors, classes or objects."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import is_colored, load_index_image
from steelgen.data.importers.legend import set_colors
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import StemIndex, list_files, parent_of
from steelgen.errors import InputError

_FOLDERS = ("label", "labels", "mask", "masks", "annotations", "segmentation", "segmentations")
_SUFFIX = re.compile(
    r"(.+?)[-_ .]+(labels?([-_ ]layer)?|masks?|seg|segmentation|annotations?|painted"
    r"|simple segmentation|object identities)",
    re.IGNORECASE,
)


def read_labels(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a_labels.tif, a-mask.png or "a_Simple Segmentation.tiff" beside a.tif, or labels/a.tif beside images/a.tif.

    Values are classes; where no file has a 0, as with ilastik, 1 is the first class. With `objects` they are ids of
    objects of one class. Colors mean what `legend` finds.

    Raises:
        InputError: if there are no labels, one has no image, or its values fit no class.
    """
    paths = list_files(src)
    labels = {path: stem for path in paths if (stem := _image_stem(path)) is not None}
    index = StemIndex(src, (path for path in paths if path not in labels))
    lookup = np.arange(256, dtype=np.uint8)
    images: dict[Path, AnnotatedImage] = {}
    for path, stem in labels.items():
        image = index.require(stem, path, options.skip_missing)
        if image is None:
            continue
        if image in images:
            raise InputError(f"{path}: {images[image].masks[0].path.name} is also the label picture of {image.name}")
        mask = IndexMask(path, lookup, path if options.objects else None, holds_objects=options.objects)
        images[image] = AnnotatedImage(image, index.stem(image), parent_of(index.stem(image)), masks=(mask,))
    if not images:
        raise InputError(f"{src}: holds no label pictures (a_labels.tif, a-mask.png, labels/a.tif) with an image")
    found, name = list(images.values()), src.resolve().name
    if options.objects:
        names = [each for each in options.class_names if each.lower() != "background"] or ["object"]
        if len(names) > 1:
            raise InputError(f"--class-names {','.join(names)}: --objects are all of one class")
        return AnnotatedSet(DatasetInfo(name=name, class_names=["background", *names]), found)
    if options.colors or is_colored(found[0].masks[0].path):
        return AnnotatedSet(*set_colors(name, found, src, options))
    return _set_values(name, found, options.class_names)


def _image_stem(path: Path) -> str | None:
    """The stem of the image that a label picture belongs to; None for any other picture."""
    stem = StemIndex.stem(path)
    if match := _SUFFIX.fullmatch(stem):
        return match[1]
    return stem if path.parent.name.lower() in _FOLDERS else None


def _set_values(name: str, images: list[AnnotatedImage], wanted: tuple[str, ...]) -> AnnotatedSet:
    values = np.zeros(256, bool)
    for image in images:
        try:
            values[np.unique(load_index_image(image.masks[0].path))] = True
        except InputError as error:
            raise InputError(f"{error} (--objects reads ids of objects)") from None
    first = 0 if values[0] else 1
    highest = int(np.flatnonzero(values[:255]).max(initial=first))
    names = list(wanted) or [f"class_{index}" for index in range(highest - first + 1)]
    if first:
        lookup = np.array([255, *range(254), 255], np.uint8)
        images = [replace(image, masks=(IndexMask(image.masks[0].path, lookup),)) for image in images]
    return AnnotatedSet(DatasetInfo(name=name, class_names=names), images)

"""Folder trees of images and mask files, in the layouts of ISDM's dataset modes.

isdm        train|test/{images,masks}, or images/ and masks/ alone      masks of class indices, or of 0 and 255
cityscapes  leftImg8bit/, gtFine/*_labelIds.png, *_instanceIds.png      label ids 0-34
ade20k      images/, annotations/ with training/ and validation/        0 is "no class", 1 to 150 become 0 to 149
celeba      train|test/{images,labels}                                  masks of class indices
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import index_by_stem, list_splits
from steelgen.data.images import find_mask_values, is_colored
from steelgen.data.importers.legend import build_colored_set
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import SPLIT_NAMES, build_set, list_files
from steelgen.data.palette import name_classes
from steelgen.errors import InputError

_MASK_FOLDERS = {"isdm": "masks", "celeba": "labels"}


def read_trees(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads images and masks that are paired by name; masks in colors are read by their legend, see `legend`.

    ADE20K's values are decremented, as in ISDM. Its 0 is ignored or, if there are 151 class names, becomes the last
    class, as in ISDM.
    """
    layout = _find_layout(src) if options.layout == "auto" else options.layout
    if layout in _MASK_FOLDERS:
        images = _read_beside(src, _MASK_FOLDERS[layout])
    elif layout == "cityscapes":
        images = _read_parallel(src, "leftImg8bit", "gtFine", "_leftImg8bit", "_gtFine_labelIds", "_gtFine_instanceIds")
    elif layout == "ade20k":
        images = _read_parallel(src, "images", "annotations")
    else:
        raise InputError(f"--layout {layout}: must be auto, isdm, cityscapes, ade20k or celeba")
    if not images:
        raise InputError(f"{src}: contains no images in the layout {layout}")
    if layout in _MASK_FOLDERS and (options.colors or is_colored(images[0].masks[0].path)):
        return build_colored_set(images, src, options)
    # The values in all masks determine the classes.
    values = find_mask_values(mask.path for image in images for mask in image.masks)
    lookup, wanted = np.arange(256, dtype=np.uint8), options.class_names
    if layout == "ade20k":
        nothing = 150 if len(wanted) == 151 else 255
        lookup = np.concatenate([[nothing], np.arange(255)]).astype(np.uint8)
        values = values[values > 0] - 1
    elif layout == "isdm" and set(values) <= {0, 255}:
        lookup[255] = 1
        wanted = wanted or ("background", "foreground")
    masks = [tuple(replace(mask, lookup=lookup) for mask in image.masks) for image in images]
    images = [replace(image, masks=found) for image, found in zip(images, masks, strict=True)]
    return build_set(src, list(wanted) or name_classes(values), images)


def _find_layout(src: Path) -> str:
    if (src / "leftImg8bit").is_dir():
        return "cityscapes"
    if (src / "images").is_dir() and (src / "annotations").is_dir():
        return "ade20k"
    for layout, folder in _MASK_FOLDERS.items():
        if any(_list_mask_folders(base, folder) for base in (src, *(src / split for split in SPLIT_NAMES))):
            return layout
    if list_splits(src):
        raise InputError(f"{src}: has images without masks, which `steelgen train` reads directly, without an import")
    raise InputError(f"{src}: is in none of the layouts isdm, cityscapes, ade20k and celeba")


def _list_mask_folders(base: Path, name: str) -> list[Path]:
    """Lists `masks/` or, one per annotator, `masks_NAME/`."""
    return sorted(path for path in base.glob(f"{name}*") if path.is_dir() and re.fullmatch(f"{name}(_.+)?", path.name))


def _read_beside(src: Path, mask_folder: str) -> list[AnnotatedImage]:
    """Reads images/ and masks/, or the `masks_NAME/` of each annotator, in the folder itself or in each split's."""
    bases: list[tuple[Path, str | None]] = [
        (src / name, split) for name, split in SPLIT_NAMES.items() if (src / name / "images").is_dir()
    ]
    found = []
    for base, split in bases or [(src, None)]:
        folders = _list_mask_folders(base, mask_folder)
        if not folders:
            raise InputError(f"{base}: has no {mask_folder}/")
        masks = [index_by_stem(list_files(folder)) for folder in folders]
        images = index_by_stem(list_files(base / "images"))
        for stem in sorted(set(images).union(*masks)):
            paths = [by_stem[stem] for by_stem in masks if stem in by_stem]
            if stem not in images:
                raise InputError(f"{paths[0]}: has no image of the same name")
            if not paths:
                raise InputError(f"{images[stem]}: has no mask of the same name")
            sources = tuple(IndexMask(path, instances=path if mask_folder == "labels" else None) for path in paths)
            annotators = tuple(path.parent.name for path in paths)
            found.append(AnnotatedImage(images[stem], masks=sources, annotators=annotators, split=split))
    return found


def _read_parallel(
    src: Path, image_folder: str, mask_folder: str, image_end: str = "", mask_end: str = "", id_end: str = ""
) -> list[AnnotatedImage]:
    """Reads two parallel trees with split folders on top; names are STEM + image_end, mask_end or id_end."""
    found = []
    for image in list_files(src / image_folder):
        relative = image.relative_to(src / image_folder)
        stem = image.stem.removesuffix(image_end)
        mask = src / mask_folder / relative.with_name(f"{stem}{mask_end}.png")
        if not mask.is_file():
            raise InputError(f"{image}: has no {relative.parent / mask.name} in {mask_folder}/")
        ids = mask.with_name(f"{stem}{id_end}.png")
        source = IndexMask(mask, instances=ids if id_end and ids.is_file() else None)
        split = SPLIT_NAMES.get(relative.parts[0].lower())
        found.append(AnnotatedImage(image, stem, masks=(source,), annotators=(mask.parent.name,), split=split))
    return found

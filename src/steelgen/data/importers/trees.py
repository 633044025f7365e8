"""Folders of images and mask files, in the trees that ISDM's dataset modes read.

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
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, IndexMask
from steelgen.data.folder import DatasetInfo, list_splits
from steelgen.data.images import is_colored, load_index_image
from steelgen.data.importers.legend import set_colors
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import SPLIT_NAMES, list_files, parent_of
from steelgen.errors import InputError

_MASK_FOLDERS = {"isdm": "masks", "celeba": "labels"}


def read_trees(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads images and masks that are paired by name; masks in colors are read by their legend, see `legend`.

    ADE20K's masks are read as ISDM reads them: one less than in the file. Its 0 is ignored, or, where 151 class names
    are given, the last of them, as in ISDM.

    Raises:
        InputError: if the tree is none of those known, an image lacks its mask or the other way round.
    """
    layout = _find_layout(src) if options.layout == "auto" else options.layout
    if layout in _MASK_FOLDERS:
        images = _read_beside(src, _MASK_FOLDERS[layout])
    elif layout == "cityscapes":
        images = _read_cityscapes(src)
    elif layout == "ade20k":
        images = _read_ade20k(src)
    else:
        raise InputError(f"--layout {layout}: must be auto, isdm, cityscapes, ade20k or celeba")
    if not images:
        raise InputError(f"{src}: holds no images in the layout {layout}")
    name = src.resolve().name
    if layout in _MASK_FOLDERS and (options.colors or is_colored(images[0].masks[0].path)):
        return AnnotatedSet(*set_colors(name, images, src, options))
    images, names = _set_classes(images, layout, options.class_names)
    return AnnotatedSet(DatasetInfo(name=name, class_names=names), images)


def _find_layout(src: Path) -> str:
    if (src / "leftImg8bit").is_dir():
        return "cityscapes"
    if (src / "images").is_dir() and (src / "annotations").is_dir():
        return "ade20k"
    for layout, folder in _MASK_FOLDERS.items():
        if any(_mask_folders(base, folder) for base in (src, *(src / split for split in SPLIT_NAMES))):
            return layout
    if list_splits(src):
        raise InputError(f"{src}: images without masks; nothing is to be imported: `steelgen train` reads it as it is")
    raise InputError(f"{src}: not one of the layouts isdm, cityscapes, ade20k and celeba")


def _mask_folders(base: Path, name: str) -> list[Path]:
    """`masks/` or, one an annotator, `masks_NAME/`."""
    return sorted(path for path in base.glob(f"{name}*") if path.is_dir() and re.fullmatch(f"{name}(_.+)?", path.name))


def _read_beside(src: Path, mask_folder: str) -> list[AnnotatedImage]:
    """images/ and masks/ in the folder itself, or in each split's; `masks_NAME/` is the mask of an annotator."""
    bases: list[tuple[Path, str | None]] = [
        (src / name, split) for name, split in SPLIT_NAMES.items() if (src / name / "images").is_dir()
    ]
    found = []
    for base, split in bases or [(src, None)]:
        folders = _mask_folders(base, mask_folder)
        if not folders:
            raise InputError(f"{base}: has no {mask_folder}/")
        masks = [_by_stem(folder) for folder in folders]
        images = _by_stem(base / "images")
        for stem in sorted(set(images).union(*masks)):
            marked = [(folder, paths[stem]) for folder, paths in zip(folders, masks, strict=True) if stem in paths]
            if stem not in images:
                raise InputError(f"{marked[0][1]}: has no image of the same name")
            if not marked:
                raise InputError(f"{images[stem]}: has no mask of the same name")
            found.append(
                _image(images[stem], [(path, path if mask_folder == "labels" else None) for _, path in marked], split)
            )
    return found


def _read_cityscapes(src: Path) -> list[AnnotatedImage]:
    found = []
    for image in list_files(src / "leftImg8bit"):
        relative = image.relative_to(src / "leftImg8bit")
        name = image.stem.removesuffix("_leftImg8bit")
        mask = src / "gtFine" / relative.parent / f"{name}_gtFine_labelIds.png"
        if not mask.is_file():
            raise InputError(f"{image}: has no {mask.name} in gtFine/")
        ids = mask.with_name(f"{name}_gtFine_instanceIds.png")
        found.append(
            _image(image, [(mask, ids if ids.is_file() else None)], SPLIT_NAMES.get(relative.parts[0].lower()), name)
        )
    return found


def _read_ade20k(src: Path) -> list[AnnotatedImage]:
    found = []
    for image in list_files(src / "images"):
        relative = image.relative_to(src / "images")
        mask = src / "annotations" / relative.with_suffix(".png")
        if not mask.is_file():
            raise InputError(f"{image}: has no {relative.with_suffix('.png')} in annotations/")
        found.append(_image(image, [(mask, None)], SPLIT_NAMES.get(relative.parts[0].lower())))
    return found


def _image(
    path: Path, masks: list[tuple[Path, Path | None]], split: str | None, stem: str | None = None
) -> AnnotatedImage:
    lookup = np.arange(256, dtype=np.uint8)
    return AnnotatedImage(
        path=path,
        stem=stem or path.stem,
        parent=parent_of(stem or path.stem),
        masks=tuple(IndexMask(mask, lookup, instances) for mask, instances in masks),
        annotators=tuple(mask.parent.name for mask, _ in masks),
        split=split,
    )


def _set_classes(
    images: list[AnnotatedImage], layout: str, wanted: tuple[str, ...]
) -> tuple[list[AnnotatedImage], list[str]]:
    """Decides from the values in all masks what they mean."""
    values = np.zeros(256, bool)
    for image in images:
        for mask in image.masks:
            values[np.unique(load_index_image(mask.path))] = True
    lookup = np.arange(256, dtype=np.uint8)
    present = np.flatnonzero(values)
    if layout == "ade20k":
        nothing = 150 if len(wanted) == 151 else 255
        lookup = np.concatenate([[nothing], np.arange(255)]).astype(np.uint8)
        present = present[present > 0] - 1
    elif layout == "isdm" and set(present) <= {0, 255}:
        lookup[255] = 1
        present = np.array([0, 1])
        wanted = wanted or ("background", "foreground")
    highest = int(present[present < 255].max(initial=0))
    names = list(wanted) or [f"class_{index}" for index in range(highest + 1)]
    return [_with_lookup(image, lookup) for image in images], names


def _with_lookup(image: AnnotatedImage, lookup: NDArray[np.uint8]) -> AnnotatedImage:
    return replace(image, masks=tuple(replace(mask, lookup=lookup) for mask in image.masks))


def _by_stem(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in list_files(folder):
        if path.stem in paths:
            raise InputError(f"{path}: {paths[path.stem].name} has the same stem; pairs are found by stem")
        paths[path.stem] = path
    return paths

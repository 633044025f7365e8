"""Images of a folder that a dataset folder lacks: micrographs that nobody has labeled."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.folder import find_images, index_by_stem, list_kept, list_pairs, list_splits
from steelgen.errors import InputError


def list_unlabeled(dataset: Path, unlabeled: Path) -> list[Path]:
    """Lists the images of a folder, or of the training split of a dataset folder, that a dataset folder lacks.

    Images with the stem of a micrograph of `dataset`, in any of its splits, are left out, so that `unlabeled` may hold
    all micrographs of which `dataset` has some; so are images in rejects.txt.

    Raises:
        InputError: if none are left, or two have the same stem.
    """
    if not unlabeled.is_dir():
        raise InputError(f"{unlabeled}: no such folder")
    if "train" not in list_splits(unlabeled):
        raise InputError(f"{unlabeled}: contains no images")
    known = {pair.stem for split in list_splits(dataset) for pair in list_pairs(dataset, split, with_rejects=True)}
    paths = [path for path in list_kept(find_images(unlabeled, "train")) if path.stem not in known]
    if not paths:
        raise InputError(f"{unlabeled}: each image has the name of a micrograph of {dataset}; there is none to label")
    index_by_stem(paths)  # raises if two have the same
    return paths

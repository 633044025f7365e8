"""Several datasets as one training set: their classes side by side, their crops in fixed shares.

A dataset without masks joins with masks of ignored pixels only, which are the null mask of the network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.config.data import MixedDataset
from steelgen.data.cache import Micrographs, Share
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import DatasetInfo, list_splits, load_dataset_info
from steelgen.data.palette import default_palette
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError

_IGNORED = 255
"""Mask value of ignored pixels in a mixture, whatever that of the datasets."""


def load_mixture(
    datasets: Sequence[MixedDataset], geometry: CropGeometry, merge_classes: bool = False, held_out: str | None = None
) -> Micrographs | None:
    """Loads several datasets as one set of micrographs; `Micrographs.shares` says where each comes from.

    Args:
        geometry: crop size and scale range of datasets without their own.
        merge_classes: classes of the same name are one class; see `name_classes`.
        held_out: the split to load, of the datasets that have it; None loads each dataset's training split.

    Returns:
        The micrographs, with the classes of all datasets; None if no dataset has the split `held_out`.

    Raises:
        InputError: if a dataset cannot be used, or there are more classes than a mask can hold.
    """
    infos = [load_dataset_info(each.dataset) for each in datasets]
    names = _name_datasets(infos, [each.dataset for each in datasets])
    own = [[] if each.unconditional else info.class_names for each, info in zip(datasets, infos, strict=True)]
    classes = name_classes(names, own, merge_classes)
    order = list(dict.fromkeys(name for each in classes for name in each))
    if len(order) > _IGNORED:
        raise InputError(f"data.datasets: have {len(order)} classes in all, more than the {_IGNORED} of a mask")
    stems: list[str] = []
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.uint8]] = []
    instances: list[NDArray[np.uint16]] | None = []
    members: list[int] = []
    shares: list[Share] = []
    for each, name, info, named in zip(datasets, names, infos, classes, strict=True):
        split = held_out or each.split
        if held_out and held_out not in list_splits(each.dataset):
            continue
        part = load_micrographs(each.dataset, split, geometry.in_channels)
        planes = [order.index(class_name) for class_name in named]
        stems += [f"{name}/{stem}" for stem in part.stems]
        images += part.images
        masks += [move_classes(mask, planes, info.ignore_index) for mask in part.masks]
        instances = None if instances is None or part.instances is None else instances + part.instances
        members += [len(shares)] * len(part)
        crop_size, scale_range = each.crop_size or geometry.crop_size, each.scale_range or geometry.scale_range
        shares.append(Share(name, each.weight, crop_size, scale_range, part.digest))
    if not shares:
        return None
    info = DatasetInfo(
        name=" + ".join(names),
        class_names=order,
        palette=default_palette(len(order)),
        licence="; ".join(dict.fromkeys(each.licence for each in infos if each.licence)),
        source="; ".join(dict.fromkeys(each.source for each in infos if each.source)),
    )
    digest = hashlib.blake2b("\n".join([*(share.digest for share in shares), *order]).encode(), digest_size=16)
    return Micrographs(
        info, stems, images, masks, instances, digest.hexdigest(), shares=tuple(shares), members=tuple(members)
    )


def name_classes(names: Sequence[str], classes: Sequence[Sequence[str]], merge: bool) -> list[list[str]]:
    """Returns the class names of each dataset within a mixture.

    Args:
        names: names of the datasets.
        classes: class names of each.
        merge: keep all names; otherwise a name that several datasets have becomes DATASET/CLASS.
    """
    uses = Counter(class_name for each in classes for class_name in dict.fromkeys(each))
    return [
        [class_name if merge or uses[class_name] == 1 else f"{name}/{class_name}" for class_name in each]
        for name, each in zip(names, classes, strict=True)
    ]


def _name_datasets(infos: Sequence[DatasetInfo], roots: Sequence[Path]) -> list[str]:
    """Names of the datasets; a name that several have is followed by the folder, and by a number if need be."""
    uses = Counter(info.name for info in infos)
    names = [
        info.name if uses[info.name] == 1 else f"{info.name} ({root.resolve().name})"
        for info, root in zip(infos, roots, strict=True)
    ]
    again = Counter(names)
    return [name if again[name] == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


def match_classes(info: DatasetInfo, mixed: DatasetInfo) -> list[int] | None:
    """Returns the index in a mixture of each class of one dataset: those called CLASS or DATASET/CLASS; None if one is
    missing."""
    order = {name: index for index, name in enumerate(mixed.class_names)}
    found = [order.get(f"{info.name}/{name}", order.get(name)) for name in info.class_names]
    planes = [index for index in found if index is not None]
    return planes if len(planes) == len(found) else None


def move_classes(mask: NDArray[np.uint8], planes: Sequence[int], ignore_index: int) -> NDArray[np.uint8]:
    """Replaces class i by planes[i] in an (H, W) mask, other values by 255; returns the mask if nothing changes."""
    if planes and ignore_index == _IGNORED and list(planes) == list(range(len(planes))):
        return mask
    table = np.full(256, _IGNORED, np.uint8)
    table[: len(planes)] = planes
    return table[mask]

"""How many classes a dataset has, where its masks alone do not tell."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.folder import DatasetInfo
from steelgen.data.palette import isdm_palette
from steelgen.errors import InputError


def declare_classes(info: DatasetInfo, num_classes: int, root: Path) -> DatasetInfo:
    """The info of a dataset that is said to have `num_classes` classes.

    Without a dataset.json the classes are counted in the masks, which may lack the last ones; these are added.

    Raises:
        InputError: if it has more classes, or its dataset.json says otherwise.
    """
    if info.num_classes == num_classes:
        return info
    if (root / "dataset.json").is_file() or info.num_classes > num_classes:
        raise InputError(f"{root}: has {info.num_classes} classes, not {num_classes}")
    names = [f"class_{index}" for index in range(num_classes)]
    return info.model_copy(update={"class_names": names, "palette": isdm_palette(num_classes)})

"""Declared number of classes, for datasets whose masks may not show all of them."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.folder import DatasetInfo
from steelgen.data.palette import isdm_palette
from steelgen.errors import InputError


def declare_classes(info: DatasetInfo, num_classes: int, root: Path) -> DatasetInfo:
    """Sets the number of classes of a dataset without a dataset.json, whose masks may not show the last classes.

    Raises:
        InputError: if the masks have more classes, or dataset.json has a different number.
    """
    if info.num_classes == num_classes:
        return info
    if (root / "dataset.json").is_file() or info.num_classes > num_classes:
        raise InputError(f"{root}: has {info.num_classes} classes, not {num_classes}")
    names = [f"class_{index}" for index in range(num_classes)]
    return info.model_copy(update={"class_names": names, "palette": isdm_palette(num_classes)})

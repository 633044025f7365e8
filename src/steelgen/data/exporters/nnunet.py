"""nnU-Net's raw folder: imagesTr/, labelsTr/, imagesTs/, labelsTs/, dataset.json, splits_final.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from steelgen.data.exporters.pairs import ExportPair
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.errors import InputError
from steelgen.files import save_json


def write_nnunet(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes train and val as training cases, separated in splits_final.json, and test as imagesTs and labelsTs.

    ignore_index becomes num_classes: nnU-Net requires the label "ignore" to be the highest.

    Raises:
        InputError: if there are gray and color images.
    """
    lookup = np.arange(256, dtype=np.uint8)
    lookup[info.ignore_index] = info.num_classes
    cases: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    examples: dict[int, Path] = {}
    ignores = False
    for pair in pairs:
        item = pair.item
        folder = "Ts" if item.split == "test" else "Tr"
        path, ndim = item.pair.image, pair.image.ndim
        examples.setdefault(ndim, path)
        if len(examples) > 1:
            raise InputError(f"{path}: nnunet cannot mix gray and color images ({examples[5 - ndim]})")
        save_micrograph(out / f"images{folder}" / f"{item.name}_0000.png", pair.image)
        (out / f"labels{folder}").mkdir(exist_ok=True)
        labels = lookup[pair.mask]
        ignores |= bool((labels == info.num_classes).any())
        Image.fromarray(labels).save(out / f"labels{folder}" / f"{item.name}.png")
        cases[item.split].append(item.name)
    names = {"background": 0, **{name: index for index, name in enumerate(info.class_names) if index > 0}}
    if ignores:
        names["ignore"] = info.num_classes
    channel_names = ["gray"] if 2 in examples else ["R", "G", "B"]
    description = {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        "labels": names,
        "numTraining": len(cases["train"]) + len(cases["val"]),
        "file_ending": ".png",
        "name": info.name,
        "licence": info.licence,
        "description": info.source,
    }
    save_json(out / "dataset.json", description)
    if cases["val"]:
        save_json(out / "splits_final.json", [{"train": cases["train"], "val": cases["val"]}])


def check_nnunet(out: Path, info: DatasetInfo) -> None:
    """Raises an `InputError` if nnU-Net does not accept the folder name or the class names."""
    if not re.fullmatch(r"Dataset\d{3}_\w[\w-]*", out.name):
        raise InputError(f"{out}: nnU-Net requires a folder name DatasetNNN_NAME, such as Dataset042_steel")
    if info.num_classes < 2:
        raise InputError(f"nnunet: {info.name} has only one class, {info.class_names[0]!r}")
    names = ["background", "ignore", *info.class_names[1:]]
    for name in info.class_names[1:]:
        if names.count(name) > 1:
            raise InputError(f"nnunet: class name {name!r} of {info.name} is reserved by nnU-Net or occurs twice")

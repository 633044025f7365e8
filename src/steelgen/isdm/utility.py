"""Conversion of the config of ISDM's segmentation_evaluation to `steelgen utility`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelgen.config.base import parse_config
from steelgen.config.isdm import IsdmStudyConfig
from steelgen.data.folder import list_images
from steelgen.errors import InputError
from steelgen.evaluation.utility.folds import count_held_back
from steelgen.generators.semantic_diffusion.isdm.network import WHOLE_MICROGRAPH

EPOCHS, BATCH_SIZE, LEARNING_RATE, VAL_SHARE = 50, 2, 1e-4, 0.2
"""The first three are from ISDM's training config; the validation share is steelgen's choice."""
DEFAULT_MODELS = ("UnetPlusPlus", "FPN", "DeepLabV3plus")
ARCHITECTURES = {"unet": "unet", "unetplusplus": "unetplusplus", "deeplabv3plus": "deeplabv3plus", "fpn": "upernet"}
"""Built-in architectures by ISDM's name in lower case; others come from segmentation_models_pytorch."""


def is_isdm_study(values: Any) -> bool:
    """Returns whether a JSON value is a config of ISDM's segmentation_evaluation."""
    if not isinstance(values, dict) or not {"train", "test"} <= values.keys():
        return False
    return bool({"generated_images", "generated_masks", "test_codes", "models", "log"} & values.keys())


def convert_isdm_study(values: dict[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    """Converts the JSON object of a config of ISDM's segmentation_evaluation; `origin` is its file, for messages.

    The default codes and the number of steps depend on the number of training images.

    Returns:
        The config of `steelgen utility` as JSON values; notes on keys without effect and on differences.

    Raises:
        InputError: if a key is unknown, the training images are missing, or train and test are not siblings.
    """
    old = parse_config(values, IsdmStudyConfig, origin=origin)
    train, test = Path(old.train), Path(old.test)
    if train.parent != test.parent:
        raise InputError(
            f"{origin}: train {train} and test {test}: must be in one folder, as DATASET/train and DATASET/test"
        )
    dataset = train.parent
    own_split = (dataset / "val" / "images").is_dir()
    total = len(list_images(train / "images"))
    count = total if own_split else total - count_held_back(total, VAL_SHARE)
    steps = max(1, EPOCHS * count // BATCH_SIZE)
    architectures = [ARCHITECTURES.get(name.lower(), f"smp:{name}:resnet34") for name in old.models or DEFAULT_MODELS]
    config: dict[str, Any] = {
        "dataset": str(dataset),
        "generated": old.generated_images or None,
        "generated_masks": old.generated_masks or None,
        "output_dir": str(Path(old.log) / "utility"),
        "codes": old.test_codes or _default_codes(count),
        "architectures": list(dict.fromkeys(architectures)),
        "train_split": train.name,
        "val_split": "val" if own_split else None,
        "val_share": VAL_SHARE,
        "test_split": test.name,
        "num_classes": old.num_classes,
        "geometry": {"image_size": old.image_size, "crop_size": WHOLE_MICROGRAPH, "in_channels": 3},
        "training": {
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "loss": "dice",
            "validate_every": max(1, steps // EPOCHS),
        },
    }
    return config, _list_notes(old, own_split, steps)


def _default_codes(count: int) -> list[str]:
    real = ("RALLF000", "RALLF100", "RALLF400", "RALLF700", "RALLFALL")
    return list(dict.fromkeys([*real, f"R000F{count}", f"R{count}F{count}", "R000FALL"]))


def _list_notes(old: IsdmStudyConfig, own_split: bool, steps: int) -> list[str]:
    unused = ("semantic_image_synthesis", "action", "num_samples", "segmentation_experiment_id")
    notes = [f"{key}: ignored" for key in unused if getattr(old, key) is not None]
    notes.append(
        "models: UnetPlusPlus, DeepLabV3plus and FPN (as UPerNet) are built in, small and without ImageNet weights; "
        "for those of segmentation_models_pytorch write e.g. smp:UnetPlusPlus:resnet34"
    )
    if not own_split:
        notes.append(f"validation: a share of {VAL_SHARE:g} of the training images, since there is no val/")
    notes.append(f"training.steps {steps}: {EPOCHS} epochs of the real images, for every code")
    return notes

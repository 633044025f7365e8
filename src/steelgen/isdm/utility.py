"""The config of ISDM's segmentation_evaluation as one of `steelgen utility`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelgen.config.base import parse_config
from steelgen.config.isdm import IsdmStudyConfig
from steelgen.data.folder import list_images
from steelgen.errors import InputError
from steelgen.evaluation.utility.data import count_held_back
from steelgen.generators.semantic_diffusion.isdm.network import WHOLE_MICROGRAPH

EPOCHS, BATCH_SIZE, LEARNING_RATE, VAL_SHARE = 50, 2, 1e-4, 0.2
"""The first three stand in its training config; the share of the validation files is this project's choice."""
DEFAULT_MODELS = ("UnetPlusPlus", "FPN", "DeepLabV3plus")
ARCHITECTURES = {"unet": "unet", "unetplusplus": "unetplusplus", "deeplabv3plus": "deeplabv3plus", "fpn": "upernet"}
"""Its names, in small letters, of what is built in here; anything else is one of segmentation_models_pytorch."""


def is_isdm_study(values: Any) -> bool:
    """Whether a JSON value is a config of ISDM's segmentation_evaluation."""
    if not isinstance(values, dict) or not {"train", "test"} <= values.keys():
        return False
    return bool({"generated_images", "generated_masks", "test_codes", "models", "log"} & values.keys())


def convert_isdm_study(values: dict[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    """Converts a config of ISDM's segmentation_evaluation.

    The training images are counted, since its default codes and its number of steps depend on them.

    Args:
        values: its JSON object.
        origin: the file, for messages.

    Returns:
        The config of `steelgen utility` as JSON values; and what means nothing any more or differs, with the reason.

    Raises:
        InputError: if a key is unknown, the training images are missing, or train and test lie apart.
    """
    old = parse_config(values, IsdmStudyConfig, origin=origin)
    train, test = Path(old.train), Path(old.test)
    if train.parent != test.parent:
        raise InputError(
            f"{origin}: train {train} and test {test}: must lie side by side, as in DATASET/train and /test"
        )
    dataset = train.parent
    own_split = (dataset / "val" / "images").is_dir()
    total = len(list_images(train / "images"))
    count = total if own_split else total - count_held_back(total, VAL_SHARE)
    steps = max(1, EPOCHS * count // BATCH_SIZE)
    config: dict[str, Any] = {
        "dataset": str(dataset),
        "generated": old.generated_images or None,
        "generated_masks": old.generated_masks or None,
        "output_dir": str(Path(old.log) / "utility"),
        "codes": old.test_codes or _default_codes(count),
        "architectures": list(dict.fromkeys(_find_architecture(name) for name in old.models or DEFAULT_MODELS)),
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
    codes = [
        "RALLF000",
        "RALLF100",
        "RALLF400",
        "RALLF700",
        "RALLFALL",
        f"R000F{count}",
        f"R{count}F{count}",
        "R000FALL",
    ]
    return list(dict.fromkeys(codes))


def _find_architecture(name: str) -> str:
    return ARCHITECTURES.get(name.lower(), f"smp:{name}:resnet34")


def _list_notes(old: IsdmStudyConfig, own_split: bool, steps: int) -> list[str]:
    dead = ("semantic_image_synthesis", "action", "num_samples", "segmentation_experiment_id")
    notes = [f"{key}: means nothing here" for key in dead if getattr(old, key) is not None]
    notes.append(
        "models: UnetPlusPlus, DeepLabV3plus and FPN (as UPerNet) are built in, small and without ImageNet's weights; "
        "for segmentation_models_pytorch's own write smp:UnetPlusPlus:resnet34"
    )
    if not own_split:
        notes.append(f"validation: a share of {VAL_SHARE:g} of the training images, as there is no val/ beside them")
    notes.append(f"training.steps {steps}: {EPOCHS} epochs of the real images, the same for every code")
    return notes

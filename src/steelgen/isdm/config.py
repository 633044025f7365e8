"""Conversion of ISDM configs to steelgen's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steelgen.config.actions import ACTIONS
from steelgen.config.base import Section, config_to_json, load_config, parse_config
from steelgen.config.isdm import IsdmConfig, IsdmNetworkSection
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.generators.semantic_diffusion.isdm.network import (
    WHOLE_MICROGRAPH,
    convert_network,
    convert_noise,
    convert_solver,
)
from steelgen.isdm.trees import TREE_MODES, Tree, find_tree

PATIENCE_STEPS = 100_000
"""Steps without an improved epoch after which ISDM stops."""
Action = Literal["train", "finetune", "sample"]


@dataclass
class Conversion:
    """A converted ISDM config."""

    action: Action
    """`finetune` also for a training config that resumes from a checkpoint."""
    config: dict[str, Any]
    """The steelgen config of that action."""
    settings: IsdmNetworkSection
    """Network and diffusion settings for reading the checkpoint."""
    checkpoint: Path | None
    """The `.pt` file that the config starts or samples from; to be imported as `imported`."""
    imported: Path | None
    tree: Tree | None
    """The data folder to import first, in the dataset modes that need it."""
    notes: list[str] = field(default_factory=list)
    """Keys without effect, each with the reason, and differences."""


def is_isdm_config(values: Any) -> bool:
    """Returns whether a JSON value is an ISDM config: most keys are ISDM's, including a characteristic one."""
    if not isinstance(values, dict):
        return False
    keys = [key for key in values if key != "$schema"]
    known = [key for key in keys if key in IsdmConfig.model_fields]
    characteristic = {"diffusion_steps", "num_channels", "dataset_mode", "data_dir", "root_log_dir", "model_path"}
    return bool(characteristic & set(known)) and 2 * len(known) > len(keys)


def guess_action(values: dict[str, Any]) -> Action:
    """Guesses the action of an ISDM config: sample if it names a model, finetune if it resumes from a checkpoint."""
    if values.get("model_path") or "num_samples" in values or "balance_args" in values:
        return "sample"
    return "finetune" if values.get("resume_checkpoint") else "train"


def convert_isdm_config(values: dict[str, Any], action: Action, origin: str) -> Conversion:
    """Converts the JSON object of an ISDM config; `origin` is its file, for messages.

    Raises:
        InputError: if a key is unknown, a value is out of range or a required key is missing; in the dataset modes of
            `TREE_MODES` also if data_dir is not a folder.
    """
    old = parse_config(values, IsdmConfig, origin=origin)
    if not old.data_dir:
        raise InputError(f"{origin}: data_dir: is missing")
    settings = IsdmNetworkSection(**{key: getattr(old, key) for key in IsdmNetworkSection.model_fields})
    notes = []
    if "fp16_scale_growth" in values:
        notes.append("fp16_scale_growth: ignored; bf16, which replaces fp16, needs no loss scale")
    if old.use_fp16:
        notes.append("use_fp16: read as mixed_precision auto: bf16 if the hardware supports it, else fp32")
    tree = None
    if old.dataset_mode in TREE_MODES:
        tree = find_tree(Path(old.data_dir), old.dataset_mode, old.num_classes)
    if action == "sample":
        return _convert_sampling(old, settings, tree, notes, origin)
    return _convert_training(old, settings, action, tree, notes, origin)


def load_any_config(path: Path, action: Action, overrides: Sequence[str] = ()) -> tuple[Section, Conversion | None]:
    """Reads a steelgen or ISDM config; `overrides` use steelgen's keys for both.

    Returns:
        The config, and the conversion of an ISDM config. An ISDM config for `train` that resumes from a checkpoint
        becomes a config for `finetune`.

    Raises:
        InputError: see `load_config` and `convert_isdm_config`.
    """
    values = load_json(path)
    if not is_isdm_config(values):
        return load_config(path, ACTIONS[action], overrides), None
    conversion = convert_isdm_config(values, action, str(path))
    return parse_config(conversion.config, ACTIONS[conversion.action], overrides, origin=str(path)), conversion


def _convert_training(
    old: IsdmConfig, settings: IsdmNetworkSection, action: Action, tree: Tree | None, notes: list[str], origin: str
) -> Conversion:
    if action == "finetune" and not old.resume_checkpoint:
        raise InputError(f"{origin}: resume_checkpoint: is missing; fine-tuning needs a checkpoint to start from")
    decay = old.weight_decay if old.weights_decay is None else old.weights_decay
    if old.weights_decay is not None:
        notes.append(f"weights_decay: read as weight_decay {decay:g}; ISDM itself ignores the misspelled key")
    if old.timestep_respacing:
        notes.append("timestep_respacing: ignored in training, which covers all steps")
    if not old.class_cond:
        notes.append("class_cond false: read as mask_dropout 1, so that training ignores the masks")
    notes.append("data: non-square micrographs are cropped, not squashed, to squares; all of train/ is used")
    micro = old.microbatch if 0 < old.microbatch < old.batch_size else old.batch_size
    decay_of_average, *others = old.ema_decays
    if others:
        notes.append(f"ema_rate {old.ema_rate}: only the first average, {decay_of_average:g}, is kept")
    train = {
        "max_steps": old.lr_anneal_steps or None,
        "max_epochs": old.max_epochs,
        "train_batch_size": micro,
        "gradient_accumulation_steps": math.ceil(old.batch_size / micro),
        "learning_rate": old.lr,
        "lr_scheduler": "linear" if old.lr_anneal_steps else "constant_with_warmup",
        "warmup_steps": 0,
        "weight_decay": decay,
        "adam_betas": [0.9, 0.999],
        "max_grad_norm": None,
        "ema_decay": decay_of_average,
        "ema_warmup": False,
        "mixed_precision": "auto" if old.use_fp16 else "no",
        "gradient_checkpointing": old.use_checkpoint,
        "log_every": old.log_interval,
        "checkpoint_every": old.save_interval,
    }
    diffusion = {
        "mask_dropout": old.drop_rate if old.class_cond else 1.0,
        "timestep_sampling": "loss_second_moment" if old.schedule_sampler == "loss-second-moment" else "even",
    }
    run_dir = Path(old.root_log_dir) / _name_run(old, action)
    config: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {
            "dataset": str(tree.folder) if tree else old.data_dir,
            "image_size": old.image_size,
            "crop_size": WHOLE_MICROGRAPH,
            "in_channels": 3,
            "augment": "mirror",
            "num_classes": old.num_classes,
        },
        "train": train,
        "diffusion": diffusion,
        "selection": {"criterion": "train_epoch_loss", "patience_steps": PATIENCE_STEPS},
    }
    checkpoint = imported = None
    if old.resume_checkpoint:
        checkpoint = Path(old.resume_checkpoint)
        imported = run_dir.with_name(f"{run_dir.name}-start")
        config |= {"checkpoint": str(imported), "continue_training": True}
    else:
        config["generator"] = {
            "unet": config_to_json(convert_network(settings)),
            "noise": config_to_json(convert_noise(settings)),
        }
    return Conversion("finetune" if checkpoint else "train", config, settings, checkpoint, imported, tree, notes)


def _convert_sampling(
    old: IsdmConfig, settings: IsdmNetworkSection, tree: Tree | None, notes: list[str], origin: str
) -> Conversion:
    if not old.model_path:
        raise InputError(f"{origin}: model_path: is missing")
    if old.s < 1:
        notes.append(f"s {old.s:g}: read as 1, since ISDM applies guidance only above 1")
    if old.is_train is False:
        notes.append("is_train false: ignored, as in ISDM, which always samples for the masks of train/")
    checkpoint = Path(old.model_path)
    folder = Path(old.results_path) if old.results_path else Path("RESULTS") / _name_run(old, "sample")
    dataset = str(tree.folder) if tree else old.data_dir
    source: dict[str, Any] = {"kind": "split", "dataset": dataset, "split": "train", "augment": False, "in_order": True}
    if balance := old.balance_args:
        keys = ("num_classes", "height", "width")
        if ignored := [key for key in keys if getattr(balance, key) is not None]:
            notes.append(f"balance_args.{', '.join(ignored)}: ignored; classes are counted at the generated size")
        source = {
            **balance.model_dump(exclude=set(keys)),
            "kind": "balanced",
            "dataset": dataset,
            "split": "train",
            "block_size": old.num_samples,
        }
    imported = folder.with_name(f"{folder.name}-{checkpoint.stem}")
    config = {
        "generator": str(imported),
        "output_dir": str(folder),
        "file_stems": "source",
        "mask_source": source,
        "num_samples": old.num_samples,
        "batch_size": old.batch_size,
        "solver": config_to_json(convert_solver(settings, old.use_ddim, old.s, old.clip_denoised)),
        "mixed_precision": "auto" if old.use_fp16 else "no",
    }
    return Conversion("sample", config, settings, checkpoint, imported, tree, notes)


def _name_run(old: IsdmConfig, action: str) -> str:
    """Builds ISDM's run name, without the time, so that the same config gives the same folder."""
    name = f"{action}_{Path(old.data_dir).name}_d={old.diffusion_steps}_c={old.num_classes}"
    if action == "finetune":
        return f"{name}_dr={old.drop_rate:g}_rc={Path(old.resume_checkpoint).stem}"
    if action == "sample":
        return f"{name}_samples={old.num_samples}_model={Path(old.model_path).stem}_s={old.s:g}"
    return name

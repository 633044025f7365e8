"""ISDM's configs as steelgen's."""

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
"""Steps without a better epoch after which ISDM stops."""
Action = Literal["train", "finetune", "sample"]


@dataclass
class Conversion:
    """An ISDM config in steelgen's terms."""

    action: Action
    """`finetune` also where a config for training goes on from a checkpoint."""
    config: dict[str, Any]
    """The steelgen config of that action."""
    settings: IsdmNetworkSection
    """Settings of network and diffusion, by which the checkpoint is read."""
    checkpoint: Path | None
    """The `.pt` file that the config starts from or draws with; it is to be imported as `imported`."""
    imported: Path | None
    tree: Tree | None
    """The data folder that is to be imported first, in those dataset modes that need it."""
    notes: list[str] = field(default_factory=list)
    """Keys that mean nothing any more, each with the reason, and what differs."""


def is_isdm_config(values: Any) -> bool:
    """Whether a JSON value is one of ISDM's configs: most keys are ISDM's, a telling one among them."""
    if not isinstance(values, dict):
        return False
    keys = [key for key in values if key != "$schema"]
    known = [key for key in keys if key in IsdmConfig.model_fields]
    telling = {"diffusion_steps", "num_channels", "dataset_mode", "data_dir", "root_log_dir", "model_path"}
    return bool(telling & set(known)) and 2 * len(known) > len(keys)


def guess_action(values: dict[str, Any]) -> Action:
    """What an ISDM config is for: drawing if it names a model, fine-tuning if it goes on from a checkpoint."""
    if values.get("model_path") or "num_samples" in values or "balance_args" in values:
        return "sample"
    return "finetune" if values.get("resume_checkpoint") else "train"


def convert_isdm_config(values: dict[str, Any], action: Action, origin: str) -> Conversion:
    """Converts one of ISDM's configs.

    Args:
        values: its JSON object.
        action: what it is used for.
        origin: the file, for messages.

    Raises:
        InputError: if a key is unknown, a value out of limits or something needed is missing; in the dataset modes of
            `TREE_MODES` also if data_dir is no folder.
    """
    old = parse_config(values, IsdmConfig, origin=origin)
    if not old.data_dir:
        raise InputError(f"{origin}: data_dir: is missing")
    settings = IsdmNetworkSection(**{key: getattr(old, key) for key in IsdmNetworkSection.model_fields})
    given = set(values)
    notes = _describe_dead_keys(old, given)
    tree = None
    if old.dataset_mode in TREE_MODES:
        tree = find_tree(Path(old.data_dir), old.dataset_mode, old.num_classes)
    if action == "sample":
        return _convert_sampling(old, settings, tree, notes, origin)
    return _convert_training(old, settings, action, tree, notes, origin)


def load_any_config(path: Path, action: Action, overrides: Sequence[str] = ()) -> tuple[Section, Conversion | None]:
    """Reads a config of steelgen's or of ISDM's.

    Args:
        action: what it is used for; `--set` overrides are in steelgen's keys for both.

    Returns:
        The config, and what was converted where it is ISDM's. A `train` that goes on from a checkpoint comes back as
        the config of a fine-tuning.

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
        raise InputError(f"{origin}: resume_checkpoint: is missing, and fine-tuning needs something to start from")
    decay = old.weight_decay if old.weights_decay is None else old.weights_decay
    if old.weights_decay is not None:
        notes.append(f"weights_decay: read as weight_decay {decay:g}, which ISDM itself ignores when so misspelt")
    if old.timestep_respacing:
        notes.append("timestep_respacing: the kept steps look alike in the full process, so training covers all steps")
    if not old.class_cond:
        notes.append("class_cond false: the masks are hidden in training by mask_dropout 1")
    notes.append("data: micrographs that are not square are cut to a square, not squashed; all of train/ is trained on")
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
        notes.append(f"s {old.s:g}: ISDM guides above 1 only, so this is 1")
    if old.is_train is False:
        notes.append("is_train false: ISDM draws for the masks of train/ all the same, and so does this")
    checkpoint = Path(old.model_path)
    folder = Path(old.results_path) if old.results_path else Path("RESULTS") / _name_run(old, "sample")
    dataset = str(tree.folder) if tree else old.data_dir
    source: dict[str, Any] = {"kind": "split", "dataset": dataset, "split": "train", "augment": False, "in_order": True}
    if balance := old.balance_args:
        keys = ("num_classes", "height", "width")
        dead = [key for key in keys if getattr(balance, key) is not None]
        if dead:
            notes.append(f"balance_args.{', '.join(dead)}: the masks are counted as they are drawn")
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


def _describe_dead_keys(old: IsdmConfig, given: set[str]) -> list[str]:
    reasons = {
        "fp16_scale_growth": "bf16, which needs no loss scale, takes the place of fp16",
        "use_fp16": "taken as mixed_precision auto: bf16 where the machine has it, else fp32",
    }
    if not old.use_fp16:
        reasons.pop("use_fp16")
    return [f"{key}: {reason}" for key, reason in reasons.items() if key in given]


def _name_run(old: IsdmConfig, action: str) -> str:
    """ISDM's name of a run, without the time, so that the same config means the same folder."""
    name = f"{action}_{Path(old.data_dir).name}_d={old.diffusion_steps}_c={old.num_classes}"
    if action == "finetune":
        return f"{name}_dr={old.drop_rate:g}_rc={Path(old.resume_checkpoint).stem}"
    if action == "sample":
        return f"{name}_samples={old.num_samples}_model={Path(old.model_path).stem}_s={old.s:g}"
    return name

"""ISDM checkpoints: `model<step>.pt`, `ema_<rate>_<step>.pt` and `opt<step>.pt`.

They are pickles; a file that contains anything but tensors and plain containers is refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steelgen.config.base import parse_config
from steelgen.config.isdm import IsdmNetworkSection
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.errors import InputError, first_line
from steelgen.files import load_json, new_file, save_json
from steelgen.generators.saved import check_weights
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.isdm.network import (
    BETA_SCHEDULES,
    WHOLE_MICROGRAPH,
    build_isdm_info,
    build_isdm_network,
    convert_noise,
)
from steelgen.generators.semantic_diffusion.isdm.state_dict import convert_from_isdm, convert_to_isdm


def load_file(path: Path) -> SemanticDiffusion:
    """Loads a checkpoint with the config beside it; see `load_isdm_checkpoint`."""
    return load_isdm_checkpoint(path, find_isdm_settings(path))


def describe_file(path: Path) -> dict[str, Any]:
    """Returns the settings of a checkpoint as JSON values."""
    return find_isdm_settings(path).model_dump(mode="json")


def load_isdm_checkpoint(path: Path, settings: IsdmNetworkSection) -> SemanticDiffusion:
    """Loads an ISDM checkpoint as a generator that reproduces its outputs.

    Args:
        path: `model<step>.pt` or `ema_<rate>_<step>.pt`.
        settings: settings of the run that wrote it.

    Raises:
        InputError: if the file is missing, damaged, contains more than tensors, or does not fit the settings; the
            message names the first key that differs, with both shapes.
    """
    network = build_isdm_network(settings)
    state = load_tensors(path)
    network.load_state_dict(convert_from_isdm(network, state, settings.use_new_attention_order, path))
    check_weights(network, path)
    noise = convert_noise(settings)
    schedule = build_noise_schedule(noise.num_train_timesteps, noise.beta_schedule, noise.prediction_type, False)
    geometry = CropGeometry(settings.image_size, WHOLE_MICROGRAPH, (1.0, 1.0), in_channels=3)
    info = build_isdm_info(settings.num_classes, path.stem)
    return SemanticDiffusion(
        network.eval(), schedule, info, geometry, objective=noise.objective, vlb_weight=noise.vlb_weight
    )


def load_isdm_settings(path: Path) -> IsdmNetworkSection:
    """Reads the network and diffusion settings from an ISDM config, ignoring other keys.

    Raises:
        InputError: if the file is not a JSON object or a value is out of range.
    """
    values = load_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must contain a JSON object, not {type(values).__name__}")
    known = {key: value for key, value in values.items() if key in IsdmNetworkSection.model_fields}
    return parse_config(known, IsdmNetworkSection, origin=str(path))


def find_isdm_settings(path: Path) -> IsdmNetworkSection:
    """Reads the settings from the config beside a checkpoint: of the same name, or ISDM's; else raises InputError."""
    names = [f"{path.stem}.json", "train_config.json", "finetune_config.json", "input_config.json", "isdm_config.json"]
    for name in names:
        if path.with_name(name).is_file():
            return load_isdm_settings(path.with_name(name))
    raise InputError(
        f"{path}: an ISDM checkpoint does not contain its network settings; put its config beside it as {names[0]}, "
        "or run `steelgen import isdm … --config CONFIG`"
    )


def export_isdm(generator: SemanticDiffusion, out: Path, new_attention_order: bool = False) -> Path:
    """Writes a generator as an ISDM checkpoint, with its settings in a JSON beside it.

    Args:
        out: the `.pt` file; replaced if it exists.
        new_attention_order: write for a config with use_new_attention_order.

    Returns:
        The path of the JSON.

    Raises:
        InputError: if the generator has a setting that ISDM does not support.
    """
    settings = describe_for_isdm(generator, new_attention_order)
    network = generator.network
    state = convert_to_isdm(network, network.state_dict(), new_attention_order)
    with new_file(out) as working:
        torch.save({name: tensor.detach().cpu() for name, tensor in state.items()}, working)
    path = out.with_suffix(".json")
    save_json(path, {**settings.model_dump(mode="json"), "class_cond": True})
    return path


def describe_for_isdm(generator: SemanticDiffusion, new_attention_order: bool) -> IsdmNetworkSection:
    """Converts the settings of a generator to ISDM's.

    Raises:
        InputError: if the generator has a setting that ISDM does not support.
    """
    network, noise = generator.network.config, generator.schedule.config
    steps = noise.num_train_timesteps
    schedules = {own: theirs for theirs, own in BETA_SCHEDULES.items()}
    limits: list[tuple[str, Any, list[Any]]] = [
        ("in_channels", network.in_channels, [3]),
        ("latent", generator.codec is not None, [False]),
        ("spade_channels", network.spade_channels, [128]),
        ("norm_groups", network.norm_groups, [32]),
        ("patch_size", network.patch_size, [1]),
        ("mask_resize", network.mask_resize, ["nearest"]),
        ("timestep_scale", network.timestep_scale, [1.0, 1000 / steps]),
        ("beta_schedule", noise.beta_schedule, list(schedules)),
        ("prediction_type", noise.prediction_type, ["epsilon", "sample"]),
        ("zero_terminal_snr", noise.rescale_betas_zero_snr, [False]),
        ("intensity", tuple(generator.intensity), [(0.0, 1.0)]),
    ]
    for name, value, wanted in limits:
        if value not in wanted:
            known = " or ".join(str(choice) for choice in wanted)
            raise InputError(f"{generator.info.name}: ISDM does not support {name} {value}, only {known}")
    settings = {
        "image_size": network.image_size,
        "num_classes": network.num_classes,
        "num_channels": network.base_channels,
        "channel_mult": ",".join(f"{factor:g}" for factor in network.channel_mult),
        "num_res_blocks": network.num_res_blocks,
        "num_heads": network.num_heads,
        "num_heads_upsample": network.num_heads_upsample or -1,
        "num_head_channels": network.num_head_channels or -1,
        "attention_resolutions": ",".join(str(edge) for edge in network.attention_resolutions),
        "dropout": network.dropout,
        "resblock_updown": network.resample_in_blocks,
        "use_scale_shift_norm": network.scale_shift,
        "use_new_attention_order": new_attention_order,
        "no_instance": not network.instance_edges,
        "learn_sigma": network.learn_sigma,
        "diffusion_steps": steps,
        "noise_schedule": schedules[noise.beta_schedule],
        "predict_xstart": noise.prediction_type == "sample",
        "use_kl": generator.objective == "variational",
        "rescale_learned_sigmas": generator.vlb_weight == 0.001 and steps != 1000,
        "rescale_timesteps": network.timestep_scale != 1,
    }
    return parse_config(settings, IsdmNetworkSection, origin=f"{generator.info.name}: not supported by ISDM")


def find_step(path: Path) -> int | None:
    """Returns the step in the name of `model<step>.pt`, `ema_<rate>_<step>.pt` or `opt<step>.pt`, else None."""
    match = re.fullmatch(r"(?:model|ema_[\d.]+_|opt)(\d+)\.pt", path.name)
    return int(match[1]) if match else None


def find_ema_siblings(path: Path) -> dict[float, Path]:
    """Finds the `ema_<rate>_<step>.pt` beside a checkpoint with the same step, sorted by rate."""
    found = {}
    for sibling in path.parent.glob("ema_*.pt"):
        match = re.fullmatch(r"ema_([\d.]+)_(\d+)\.pt", sibling.name)
        if match and int(match[2]) == find_step(path):
            found[float(match[1])] = sibling
    return dict(sorted(found.items()))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a pickled state dict.

    Raises:
        InputError: if the file is missing, damaged, could run code or is not a dictionary of tensors.
    """
    state = load_pickle(path)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path}: not a state dict (a dictionary of tensors by name)")
    return state


def load_pickle(path: Path) -> Any:
    """Reads a pickle of tensors and plain containers without running code.

    Raises:
        InputError: if the file is missing, damaged, or contains anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|function|class|call) [`'\"]?([\w.]+\.[\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise InputError(f"{path}: refused: contains objects other than tensors, which could run code{what}") from None
    except Exception as error:  # torch raises many kinds of errors on other files
        raise InputError(f"{path}: not a PyTorch checkpoint: {first_line(error)}") from None

"""What goes on from an ISDM checkpoint: weights, averages, AdamW's moments and the step, found by ISDM's file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steelgen.errors import InputError
from steelgen.files import save_json, save_tensors
from steelgen.generators.semantic_diffusion.isdm.checkpoint import (
    find_ema_siblings,
    find_step,
    load_pickle,
    load_tensors,
)
from steelgen.generators.semantic_diffusion.isdm.state_dict import (
    convert_from_isdm,
    list_key_rules,
    order_isdm_names,
    rename_for_isdm,
)
from steelgen.models.semantic_unet import SemanticUNet

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_training_state(path: Path, network: SemanticUNet, new_attention_order: bool, folder: Path) -> list[str]:
    """Writes training.json, weights, average and optimizer of `model<step>.pt` and its siblings into `folder`.

    The average is that of the slowest `ema_<rate>_<step>.pt`, or the weights where there is none; without an
    `opt<step>.pt` the moments are left empty, and AdamW starts afresh.

    Args:
        path: a `model<step>.pt`, whose weights `network` has.

    Returns:
        The names of the siblings that were found.

    Raises:
        InputError: if a sibling is damaged or does not fit.
    """
    weights = network.state_dict()
    averages = find_ema_siblings(path)
    moments = path.with_name(path.name.replace("model", "opt", 1))
    folder.mkdir(parents=True)
    save_tensors(folder / "weights.safetensors", weights)
    average = weights
    if slowest := [*averages.values()][-1:]:
        average = convert_from_isdm(network, load_tensors(slowest[0]), new_attention_order, slowest[0])
    save_tensors(folder / "average.safetensors", average)
    flat = load_moments(moments, network, new_attention_order) if moments.is_file() else {}
    save_tensors(folder / "optimizer.safetensors", flat)
    save_json(folder / "training.json", {"global_step": find_step(path), "scaler": None})
    return [sibling.name for sibling in slowest] + ([moments.name] if flat else [])


def load_moments(path: Path, network: SemanticUNet, new_attention_order: bool) -> dict[str, Tensor]:
    """AdamW's state from `opt<step>.pt`, as `<number of the parameter in network>.<entry>`.

    ISDM numbers parameters in its own order; with use_fp16 it keeps two flat ones, vectors first.

    Raises:
        InputError: if it is no state of AdamW for this network.
    """
    loaded = load_pickle(path)
    state = loaded.get("state") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise InputError(f"{path}: not the state of an optimizer")
    rules = list_key_rules(network, new_attention_order)
    shapes = {name: tensor.shape for name, tensor in rename_for_isdm(rules, network.state_dict()).items()}
    names = order_isdm_names(rules)
    if not state:
        return {}
    try:
        by_kind = {
            kind: _name_tensors([state[index][kind] for index in sorted(state)], names, shapes) for kind in _MOMENTS
        }
        steps = float(state[min(state)]["step"])
    except (KeyError, TypeError, RuntimeError, ValueError):
        raise InputError(f"{path}: not the state of AdamW for the config's network") from None
    converted = {
        kind: convert_from_isdm(network, tensors, new_attention_order, path) for kind, tensors in by_kind.items()
    }
    flat: dict[str, Tensor] = {}
    for index, (name, _) in enumerate(network.named_parameters()):
        flat[f"{index}.step"] = torch.tensor(steps)
        for kind in _MOMENTS:
            flat[f"{index}.{kind}"] = converted[kind][name]
    return flat


def _name_tensors(tensors: list[Tensor], names: list[str], shapes: dict[str, Any]) -> dict[str, Tensor]:
    if len(tensors) == len(names):
        return dict(zip(names, tensors, strict=True))
    vectors, matrices = ([name for name in names if (len(shapes[name]) > 1) == wide] for wide in (False, True))
    named: dict[str, Tensor] = {}
    for group, flat in zip((vectors, matrices), tensors, strict=True):
        parts = flat.flatten().split([shapes[name].numel() for name in group])
        named |= {name: part.reshape(shapes[name]) for name, part in zip(group, parts, strict=True)}
    return named

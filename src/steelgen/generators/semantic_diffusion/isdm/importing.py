"""Import of ISDM checkpoints as generator folders, with the training state of their siblings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steelgen.config.isdm import IsdmNetworkSection
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder, save_json, save_tensors
from steelgen.generators.saved import DESCRIPTION_FILE
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.isdm.checkpoint import (
    find_ema_siblings,
    find_step,
    load_isdm_checkpoint,
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


@dataclass(frozen=True)
class ImportResult:
    """An imported checkpoint."""

    generator: SemanticDiffusion
    step: int | None
    """The step in the file's name."""
    siblings: list[str]
    """Files of averages and moments that were imported with it."""


def import_isdm(path: Path, settings: IsdmNetworkSection, out: Path) -> ImportResult:
    """Converts an ISDM checkpoint to a new generator folder for `load_generator`.

    The weights are those of `path`. For a `model<step>.pt`, training/ also gets the state for resuming: the averages
    and moments of the siblings with the same step.

    Raises:
        InputError: see `load_isdm_checkpoint`; also if `out` is in use.
    """
    check_output_free(out)
    generator = load_isdm_checkpoint(path, settings)
    siblings: list[str] = []
    with new_folder(out) as working:
        generator.save(working)
        if path.name.startswith("model") and find_step(path) is not None:
            order = settings.use_new_attention_order
            siblings = _save_training_state(path, generator.network, order, working / "training")
    return ImportResult(generator, find_step(path), siblings)


def import_once(path: Path, settings: IsdmNetworkSection, out: Path) -> bool:
    """Imports a checkpoint unless `out` already contains a generator; returns whether it did.

    Raises:
        InputError: see `import_isdm`.
    """
    if (out / DESCRIPTION_FILE).is_file():
        return False
    try:
        import_isdm(path, settings, out)
    except (InputError, OSError):
        # Another process of the same job may have imported it in the meantime.
        if not (out / DESCRIPTION_FILE).is_file():
            raise
    return True


def _save_training_state(path: Path, network: SemanticUNet, new_attention_order: bool, folder: Path) -> list[str]:
    """Writes training.json, weights, averages and optimizer of `model<step>.pt` and its siblings into `folder`.

    The average is that of the slowest `ema_<rate>_<step>.pt`, or the weights if there is none. Without an
    `opt<step>.pt` the moments stay empty, and AdamW starts from zero.

    Returns:
        The names of the siblings found.
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
    """Reads AdamW's state from `opt<step>.pt`, keyed `<index of the parameter in network>.<entry>`.

    ISDM numbers parameters in its own order; with use_fp16 it keeps two flat ones, vectors first.

    Raises:
        InputError: if it is not the state of AdamW for this network.
    """
    loaded = load_pickle(path)
    state = loaded.get("state") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise InputError(f"{path}: not an optimizer state")
    if not state:
        return {}
    rules = list_key_rules(network, new_attention_order)
    shapes = {name: tensor.shape for name, tensor in rename_for_isdm(rules, network.state_dict()).items()}
    names = order_isdm_names(rules)
    try:
        named = {
            kind: _name_tensors([state[index][kind] for index in sorted(state)], names, shapes) for kind in _MOMENTS
        }
        step = torch.tensor(float(state[min(state)]["step"]))
    except (KeyError, TypeError, RuntimeError, ValueError):
        raise InputError(f"{path}: not the state of AdamW for the network of the config") from None
    moments = {kind: convert_from_isdm(network, tensors, new_attention_order, path) for kind, tensors in named.items()}
    flat: dict[str, Tensor] = {}
    for index, (name, _) in enumerate(network.named_parameters()):
        flat[f"{index}.step"] = step.clone()
        for kind in _MOMENTS:
            flat[f"{index}.{kind}"] = moments[kind][name]
    return flat


def _name_tensors(tensors: list[Tensor], names: list[str], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    if len(tensors) == len(names):
        return dict(zip(names, tensors, strict=True))
    vectors, matrices = ([name for name in names if (len(shapes[name]) > 1) == wide] for wide in (False, True))
    named: dict[str, Tensor] = {}
    for group, flat in zip((vectors, matrices), tensors, strict=True):
        parts = flat.flatten().split([shapes[name].numel() for name in group])
        named |= {name: part.reshape(shapes[name]) for name, part in zip(group, parts, strict=True)}
    return named

"""Low-rank updates: new ones, trained ones in any common format, and their export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, get_peft_kwargs
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from steelgen.config.adapter import LoraSection
from steelgen.errors import InputError, first_line
from steelgen.files import save_tensors
from steelgen.generators.latent_adapter.base import Base
from steelgen.generators.saved import find_generator

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for low-rank updates, which its `load_lora_weights` looks for in a folder."""
_ADAPTER = "default"
"""peft's name of the updates."""
_TEXT, _OLD_TEXT = "text_encoder.", "text_encoder.text_model."
"""Start of the names of the text encoder's updates here, and in files, which keep the names of older transformers."""
_TEXT_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj"]


def add_lora(base: Base, section: LoraSection) -> None:
    """Adds untrained low-rank updates, which change nothing yet; torch's global seed determines their weights.

    Raises:
        InputError: if no layer has one of the names of section.target_modules.
    """
    alpha = section.rank if section.alpha is None else section.alpha
    options: dict[str, Any] = {"r": section.rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
    try:
        base.unet.add_adapter(LoraConfig(target_modules=section.target_modules, **options))
    except ValueError as error:
        raise InputError(
            f"generator.lora.target_modules {section.target_modules}: not in the U-Net: {first_line(error)}"
        ) from None
    if section.text_encoder:
        # transformers' own add_adapter insists on a peft that may not be released yet.
        inject_adapter_in_model(LoraConfig(target_modules=_TEXT_MODULES, **options), base.text_encoder, _ADAPTER)
    _keep_precise(base)


def find_lora(path: Path) -> Path:
    """Finds the file of trained low-rank updates.

    Args:
        path: a .safetensors file, a folder of diffusers' scripts, or a generator of kind latent_adapter.

    Raises:
        InputError: if there is none.
    """
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"generator.lora {path}: no such file")
        return path
    if (path / LORA_FILE).is_file():
        return path / LORA_FILE
    if not path.is_dir():
        raise InputError(f"generator.lora {path}: no such file or folder")
    folder = find_generator(path)
    if not (folder / LORA_FILE).is_file():
        raise InputError(f"generator.lora {path}: has no low-rank updates (no {LORA_FILE})")
    return folder / LORA_FILE


def load_lora(base: Base, path: Path) -> None:
    """Adds trained low-rank updates of diffusers', peft's or kohya's format.

    Raises:
        InputError: if the file is damaged or does not fit the base.
    """
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
        )
        if not hasattr(base.text_encoder, "text_model"):
            state, alphas = (_rename(each, _OLD_TEXT, _TEXT) for each in (state, alphas or {}))
        _check_fit(base, state, path)
        StableDiffusionLoraLoaderMixin.load_lora_into_unet(
            state, alphas or None, base.unet, adapter_name=_ADAPTER, metadata=metadata
        )
        if any(name.startswith(_TEXT) for name in state):
            _load_into_text_encoder(base.text_encoder, *(_select(each or {}) for each in (state, alphas, metadata)))
    except InputError:
        raise
    except Exception as error:  # diffusers, peft and safetensors raise many kinds
        raise InputError(f"{path}: low-rank updates do not fit the base: {first_line(error)}") from None
    finally:
        diffusers_logging.set_verbosity(verbosity)
    _keep_precise(base)


def save_lora(base: Base, folder: Path) -> None:
    """Writes the low-rank updates for diffusers' `load_lora_weights`, with rank and alpha in the file's metadata.

    Equal updates give equal files, whose hash names a generator; diffusers' own `save_lora_weights` writes metadata in
    random order.
    """
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for part, network in (("unet", base.unet), ("text_encoder", base.text_encoder)):
        if not getattr(network, "peft_config", None):
            continue
        # Names of older transformers; see `load_lora`.
        start = _OLD_TEXT if part == "text_encoder" and not hasattr(network, "text_model") else f"{part}."
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        tensors |= {f"{start}{name}": tensor for name, tensor in state.items()}
        for key, value in network.peft_config[_ADAPTER].to_dict().items():
            described[f"{part}.{key}"] = sorted(value) if isinstance(value, set) else value
    save_tensors(folder / LORA_FILE, tensors, {LORA_ADAPTER_METADATA_KEY: json.dumps(described, sort_keys=True)})


def _load_into_text_encoder(
    network: nn.Module, state: dict[str, Tensor], alphas: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """What diffusers does through transformers' load_adapter; see `add_lora`."""
    state = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    ranks = {name: tensor.shape[1] for name, tensor in state.items() if "lora_B" in name}
    options = metadata or get_peft_kwargs(ranks, alphas or None, state, is_unet=False)
    inject_adapter_in_model(LoraConfig(**options), network, _ADAPTER)
    set_peft_model_state_dict(network, state, _ADAPTER)


def _rename(values: dict[str, Any], start: str, new: str) -> dict[str, Any]:
    """Replaces the start of the keys that have it."""
    return {new + key.removeprefix(start) if key.startswith(start) else key: value for key, value in values.items()}


def _select(values: dict[str, Any]) -> dict[str, Any]:
    """The entries of the text encoder, without the start of their keys."""
    return {key.removeprefix(_TEXT): value for key, value in values.items() if key.startswith(_TEXT)}


def _keep_precise(base: Base) -> None:
    """Low-rank updates are fp32 whatever the precision of the base is."""
    for network in (base.unet, base.text_encoder):
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()


def _check_fit(base: Base, state: dict[str, Tensor], path: Path) -> None:
    """Raises InputError if updates are for other networks, or naming the first of another shape than its layer.

    peft would list the shapes of all layers.
    """
    parts = {name.split(".")[0] for name in state}
    if "unet" not in parts or not parts <= {"unet", "text_encoder"}:
        listed = ", ".join(sorted(parts)[:5])
        raise InputError(f"{path}: not low-rank updates of Stable Diffusion 1.x or 2.x, but of {listed or 'nothing'}")
    layers = {
        f"{part}.{name}": module
        for part, network in (("unet", base.unet), ("text_encoder", base.text_encoder))
        for name, module in network.named_modules()
    }
    for name, tensor in state.items():
        layer, _, end = name.partition(".lora")
        weight = getattr(layers.get(layer), "weight", None)
        if weight is None or tensor.ndim < 2:
            continue
        first = "_A" in end or "down" in end
        found, wanted = (tensor.shape[1], weight.shape[1]) if first else (tensor.shape[0], weight.shape[0])
        if found != wanted:
            raise InputError(
                f"{path}: {name!r} is for {found} {'inputs' if first else 'outputs'}, the layer of the base has "
                f"{wanted}: updates of another base"
            )

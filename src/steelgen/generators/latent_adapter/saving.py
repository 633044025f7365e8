"""Saved adapters: their weights in the formats of diffusers, and a reference to the base.

generator.json                         section, classes, geometry, path and hash of the base
pytorch_lora_weights.safetensors       for `StableDiffusionPipeline.load_lora_weights`
controlnet/                            for `ControlNetModel.from_pretrained`
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel

from steelgen import __version__
from steelgen.config.adapter import LatentAdapterSection
from steelgen.errors import InputError, first_line
from steelgen.files import load_record, new_folder, save_json
from steelgen.generators.latent_adapter.base import align_weights, load_base
from steelgen.generators.latent_adapter.generator import LatentAdapter, assemble
from steelgen.generators.latent_adapter.hub import find_base, hash_base
from steelgen.generators.latent_adapter.lora import LORA_FILE, save_lora
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, check_weights

_CONTROL_FOLDER = "controlnet"


class _Settings(SavedSettings):
    section: LatentAdapterSection
    base_hash: str


def save_latent_adapter(generator: LatentAdapter, folder: Path) -> None:
    """Writes a new folder with the adapters; the base is not copied."""
    settings = _Settings(
        dataset=generator.info, geometry=generator.geometry, section=generator.section, base_hash=generator.base_hash
    )
    with new_folder(folder) as working:
        if generator.section.lora is not None:
            save_lora(generator.base, working)
        if generator.network.control is not None:
            generator.network.control.save_pretrained(working / _CONTROL_FOLDER)
        described = settings.model_dump(mode="json")
        save_json(working / DESCRIPTION_FILE, {"kind": generator.kind, "steelgen_version": __version__, **described})


def load_latent_adapter(folder: Path) -> LatentAdapter:
    """Loads adapters saved by `save_latent_adapter`, and their base.

    Raises:
        InputError: if the base is missing or another one, or a file is missing or damaged.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    section = settings.section
    try:
        path = find_base(section.base)
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION_FILE}: {error}") from None
    if hash_base(path) != settings.base_hash:
        raise InputError(
            f"{folder / DESCRIPTION_FILE}: generator.base {section.base!r} has other weights than in training"
        )
    lora = folder / LORA_FILE if section.lora is not None else None
    if lora is not None and not lora.is_file():
        raise InputError(f"{lora}: no such file")
    control = _load_control(folder / _CONTROL_FOLDER) if section.control is not None else None
    base = load_base(path, torch.bfloat16 if section.base_precision == "bf16" else torch.float32)
    return assemble(base, section, settings.dataset, settings.geometry, lora, control, settings.base_hash)


def _load_control(folder: Path) -> ControlNetModel:
    try:
        control = ControlNetModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged files
        raise InputError(f"{folder}: not a complete ControlNet: {first_line(error)}") from None
    check_weights(control, folder)
    align_weights(control)
    return control

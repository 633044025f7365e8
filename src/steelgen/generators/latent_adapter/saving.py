"""Saved adapters: their weights in the formats of diffusers, and a reference to the base.

generator.json                         section, classes, geometry, path and hash of the base
pytorch_lora_weights.safetensors       for `StableDiffusionPipeline.load_lora_weights`
controlnet/                            for `ControlNetModel.from_pretrained`
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ControlNetModel

from steelgen import __version__
from steelgen.config.adapter import LatentAdapterSection
from steelgen.errors import InputError, first_line
from steelgen.files import load_record, new_folder, save_json
from steelgen.generators.latent_adapter.base import Base, align_weights, load_base
from steelgen.generators.latent_adapter.hub import find_base, hash_base
from steelgen.generators.latent_adapter.lora import LORA_FILE, save_lora
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, check_weights

_CONTROL_FOLDER = "controlnet"


class AdapterSettings(SavedSettings):
    """Settings in generator.json."""

    section: LatentAdapterSection
    base_hash: str


class SavedAdapters(NamedTuple):
    """A loaded base, and what was trained on it."""

    settings: AdapterSettings
    base: Base
    lora: Path | None
    """File of low-rank updates."""
    control: ControlNetModel | None


def save_adapters(
    folder: Path, kind: str, settings: AdapterSettings, base: Base, control: ControlNetModel | None
) -> None:
    """Writes a new folder with the adapters; the base is not copied."""
    with new_folder(folder) as working:
        if settings.section.lora is not None:
            save_lora(base, working)
        if control is not None:
            control.save_pretrained(working / _CONTROL_FOLDER)
        described = settings.model_dump(mode="json")
        save_json(working / DESCRIPTION_FILE, {"kind": kind, "steelgen_version": __version__, **described})


def load_adapters(folder: Path) -> SavedAdapters:
    """Loads the output of `save_adapters`, and the base.

    Raises:
        InputError: if the base is missing or another one, or a file is missing or damaged.
    """
    settings = load_record(folder / DESCRIPTION_FILE, AdapterSettings)
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
    return SavedAdapters(settings, base, lora, control)


def _load_control(folder: Path) -> ControlNetModel:
    try:
        control = ControlNetModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged files
        raise InputError(f"{folder}: not a complete ControlNet: {first_line(error)}") from None
    check_weights(control, folder)
    align_weights(control)
    return control

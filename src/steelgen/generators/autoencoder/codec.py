"""The autoencoder of a latent diffusion model: loading, checking, and its copy in the model's folder."""

from __future__ import annotations

from pathlib import Path

import torch

from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators.autoencoder.generator import Autoencoder, load_autoencoder
from steelgen.generators.families import load_generator

CODEC_FOLDER = "codec"
"""In a saved latent diffusion model: a copy of its autoencoder."""


def load_codec(path: Path | None, info: DatasetInfo, geometry: CropGeometry, levels: int) -> Autoencoder | None:
    """Loads the autoencoder of generator.latent; None without one.

    Args:
        info: classes of the masks that the model generates; without classes it generates images alone.
        geometry: crops of the model.
        levels: resolution levels of its network.

    Raises:
        InputError: if it cannot be loaded, is no autoencoder, or does not fit.
    """
    if path is None:
        return None
    codec = load_generator(path)
    if not isinstance(codec, Autoencoder):
        raise InputError(f"generator.latent: {path} is of kind {codec.kind}; train one of kind autoencoder")
    found, wanted = codec.geometry.in_channels, geometry.in_channels
    if found != wanted:
        raise InputError(f"generator.latent: {path} was trained with in_channels {found}, data.in_channels is {wanted}")
    if info.num_classes and codec.mask_codec is None:
        raise InputError(f"generator.latent: {path} was trained without masks; train one on a dataset with masks")
    if info.num_classes and codec.info.class_names != info.class_names:
        names = [", ".join(each.class_names) for each in (codec.info, info)]
        raise InputError(f"generator.latent: {path} has the classes {names[0]}, the dataset has {names[1]}")
    check_latent_size(geometry.image_size, codec, levels)
    return codec


def check_latent_size(image_size: int, codec: Autoencoder, levels: int) -> None:
    """Raises InputError if the latents of images of `image_size` px have no whole number of pixels at each level."""
    multiple = codec.factor * 2 ** (levels - 1)
    if image_size % multiple:
        raise InputError(
            f"data.image_size {image_size}: must be a multiple of {multiple} for {levels} levels above an autoencoder "
            f"with downsample_factor {codec.factor}"
        )


def load_saved_codec(folder: Path) -> Autoencoder:
    """Loads the copy in the folder of a latent diffusion model.

    Raises:
        InputError: if it is missing or damaged.
    """
    return load_autoencoder(folder / CODEC_FOLDER)


def is_same_codec(first: Autoencoder | None, second: Autoencoder | None) -> bool:
    """Returns whether two models work on the same latents; both may have none."""
    if first is None or second is None:
        return first is second
    ours, theirs = (each.image_codec.state_dict() for each in (first, second))
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor.cpu(), theirs[name].cpu()) for name, tensor in ours.items()
    )

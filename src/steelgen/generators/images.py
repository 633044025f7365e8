"""Gray levels of images in the units of networks, and the images that a generator is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators import DrawRequest

Intensity = tuple[float, float]
"""Mean and standard deviation of gray levels in [-1, 1], those of the training images or (0, 1)."""


def standardize(images: Tensor, intensity: Intensity) -> Tensor:
    """Shifts and scales images in [-1, 1] to mean 0 and standard deviation 1."""
    mean, deviation = intensity
    return (images - mean) / deviation


def restore(images: Tensor, intensity: Intensity) -> Tensor:
    """Inverts `standardize`, limited to [-1, 1]; see `limit`."""
    mean, deviation = intensity
    return limit(images * deviation + mean)


def limit(images: Tensor) -> Tensor:
    """Limits images to [-1, 1]. Pixels that are not finite become NaN, which callers check for on the host; otherwise,
    infinite ones would be white."""
    return images.clamp(-1, 1).where(images.isfinite(), math.nan)


def keep_known(images: Tensor, request: DrawRequest) -> Tensor:
    """Puts the known pixels of a request's images into generated ones."""
    if request.known is None or request.images is None:
        return images
    return torch.where(request.known[:, None].to(images.device), request.images.to(images.device), images)


def take_images(request: DrawRequest, geometry: CropGeometry, kind: str) -> Tensor:
    """Returns the images of a request to a generator that needs them.

    Raises:
        InputError: if there are none, or they have other channels than the training images.
    """
    images = request.images
    if images is None:
        raise InputError(f"generators of kind {kind} need images")
    if images.shape[1] != geometry.in_channels:
        raise InputError(
            f"images have {images.shape[1]} channels, the generator was trained with {geometry.in_channels}"
        )
    return images

"""What a base's autoencoder keeps of micrographs: the limit of everything that is generated with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from steelgen.data.crops import cut_crops, image_to_tensor, load_micrographs, tensor_to_image
from steelgen.data.images import save_micrograph
from steelgen.data.placement import CropGeometry
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.files import new_folder, save_json
from steelgen.generators.latent_adapter.base import Base, load_base
from steelgen.generators.latent_adapter.hub import find_base
from steelgen.generators.latent_adapter.network import AdaptedNetwork

_RING = 3
"""Width in px of the surroundings that a class is compared with."""


class ClassContrast(NamedTuple):
    """Contrast of a class with its surroundings, in gray levels."""

    name: str
    pixels: int
    real: float
    """Of the micrographs; NaN for a class that is absent."""
    reconstructed: float

    @property
    def kept(self) -> float:
        """Share of the contrast that the autoencoder keeps; NaN without contrast."""
        return self.reconstructed / self.real if self.real else math.nan


def reconstruct_dataset(
    dataset: Path,
    base: str,
    out: Path,
    split: str = "train",
    image_size: int = 512,
    count: int = 16,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[ClassContrast]:
    """Passes crops of a split through a base's autoencoder, and measures what contrast each class keeps.

    Thin features, such as films of 1 to 3 px, are the first that an autoencoder of 8 px per latent erases; no adapter
    brings them back. Writes crop and reconstruction side by side as OUT/NUMBER.png, and reconstruction.json.

    Args:
        base: as `LatentAdapterSection.base`.
        image_size: edge of the crops, px.
        count: number of crops, evenly distributed over the micrographs.
        report: called with (crops done, crops in total).

    Raises:
        InputError: if the dataset or the base cannot be used, or `out` is in use.
    """
    micrographs = load_micrographs(dataset, split)
    loaded = load_base(find_base(base), torch.float32)
    loaded.check_image_size(image_size)
    smallest = min(min(mask.shape) for mask in micrographs.masks)
    if smallest < image_size:
        raise InputError(f"--image-size {image_size}: the shortest edge of {dataset} is {smallest} px")
    images, masks = cut_crops(micrographs, CropGeometry(image_size, image_size), count)
    with new_folder(out) as working:
        reconstructed = reconstruct(loaded, images, report)
        for number, pair in enumerate(zip(images, reconstructed, strict=True)):
            save_micrograph(working / f"{number:03d}.png", np.hstack(pair))
        contrasts = measure_contrasts(images, reconstructed, masks, micrographs.info.class_names)
        save_json(working / "reconstruction.json", describe_contrasts(contrasts))
    return contrasts


def reconstruct(
    base: Base, images: NDArray[np.uint8], report: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.uint8]:
    """Encodes and decodes gray images (N, H, W)."""
    network = AdaptedNetwork(base, None).to(pick_device())
    found = []
    for done, image in enumerate(images, start=1):
        latents = network.encode(image_to_tensor(image)[None].to(pick_device()))
        found.append(tensor_to_image(network.decode(latents)[0].mean(dim=0, keepdim=True)))
        report(done, len(images))
    return np.stack(found)


def measure_contrasts(
    images: NDArray[np.uint8], reconstructed: NDArray[np.uint8], masks: NDArray[np.uint8], class_names: list[str]
) -> list[ClassContrast]:
    """Mean gray level of each class minus that of the pixels within 3 px around it, in images and reconstructions.

    The first class, the matrix, is left out.

    Args:
        images, reconstructed: (N, H, W).
        masks: (N, H, W) class indices.
    """
    square = np.ones((2 * _RING + 1, 2 * _RING + 1), bool)
    contrasts = []
    for index, name in enumerate(class_names[1:], start=1):
        inside = masks == index
        around = np.stack([binary_dilation(mask, square) for mask in inside]) & ~inside & (masks < len(class_names))
        values = [math.nan, math.nan]
        if inside.any() and around.any():
            values = [float(each[inside].mean() - each[around].mean()) for each in (images, reconstructed)]
        contrasts.append(ClassContrast(name, int(inside.sum()), *values))
    return contrasts


def describe_contrasts(contrasts: list[ClassContrast]) -> dict[str, dict[str, float | None]]:
    """The contrasts by class name, as JSON values; None where a class is absent."""
    return {
        each.name: {
            "pixels": each.pixels,
            **{
                key: None if math.isnan(value) else round(value, 4)
                for key, value in (("real", each.real), ("reconstructed", each.reconstructed), ("kept", each.kept))
            },
        }
        for each in contrasts
    }

"""Transfer of a trained semantic diffusion model to other classes, another image size or other gray levels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion, measure_detail
from steelgen.models.semantic_unet import SemanticUNet

_MASK_WEIGHT = ".shared.weight"
"""End of the names of the convolutions that see the mask, (hidden, mask channels, 3, 3); see `SpadeNorm`."""


def adapt_semantic_diffusion(
    generator: SemanticDiffusion, micrographs: Micrographs, geometry: CropGeometry, keep_classes: bool
) -> tuple[SemanticDiffusion, str]:
    """Adapts a model to new micrographs: all weights that still fit are kept.

    Gray levels are standardized by the statistics of the new micrographs if the model standardizes at all. Mask planes
    of classes with the same name are kept, those of other classes are new.

    Returns:
        The model and a line for people; see `steelgen.generators.families.adapt_generator`.

    Raises:
        InputError: if the levels of the network or the factor of its coarse images do not divide the new image size, or
            all pixels are alike.
    """
    before, info = generator.info, micrographs.info
    notes = []
    network, intensity, low_resolution = generator.network, generator.intensity, generator.low_resolution
    if low_resolution and geometry.image_size % low_resolution.factor:
        raise InputError(
            f"data.image_size {geometry.image_size}: must be a multiple of {low_resolution.factor}, the factor of the "
            "checkpoint's coarse images"
        )
    if intensity != (0.0, 1.0):
        intensity = micrographs.compute_intensity()
        if intensity[1] == 0:
            raise InputError(f"{info.name}: all pixels of the training micrographs have the same gray level")
    if info.class_names != before.class_names or geometry.image_size != generator.geometry.image_size:
        network = _build_network(generator.network, info, geometry)
        planes = _match_planes(before, info, keep_classes)
        kept = _copy_weights(generator.network, network, planes)
        total = sum(parameter.numel() for parameter in network.parameters())
        notes.append(f"kept {kept:,} of {total:,} weights")
        if info.class_names != before.class_names:
            notes += _describe_classes(before, info, planes)
        if geometry.image_size != generator.geometry.image_size:
            notes.append(f"image_size {generator.geometry.image_size} -> {geometry.image_size}")
    if intensity != generator.intensity:
        notes.append(f"gray levels {_describe_gray_levels(generator.intensity)} -> {_describe_gray_levels(intensity)}")
    detail = generator.detail
    if low_resolution and intensity != (0.0, 1.0):
        detail = measure_detail(micrographs, geometry, low_resolution.factor) / intensity[1]
    adapted = replace(
        generator, network=network, info=info, geometry=geometry, intensity=intensity, detail=detail, _weak=None
    )
    return adapted, "; ".join(notes)


def _build_network(old: SemanticUNet, info: DatasetInfo, geometry: CropGeometry) -> SemanticUNet:
    """Builds the same network for other classes or another image size; attention stays at the same levels."""
    config = {name: value for name, value in old.config.items() if not name.startswith("_")}
    size, before = geometry.image_size, config["image_size"]
    if size % old.downsampling_factor:
        raise InputError(
            f"data.image_size {size}: must be a multiple of {old.downsampling_factor}; the checkpoint's network has "
            f"{len(config['channel_mult'])} levels"
        )
    attended = [edge * size // before for edge in config["attention_resolutions"]]
    return SemanticUNet(
        **{**config, "image_size": size, "num_classes": info.num_classes, "attention_resolutions": attended}
    )


def _match_planes(before: DatasetInfo, info: DatasetInfo, keep_classes: bool) -> dict[int, int]:
    """Maps each class of the new masks to the class with the same name in the old ones, if there is one."""
    if not keep_classes:
        return {}
    old = {name: index for index, name in enumerate(before.class_names)}
    return {index: old[name] for index, name in enumerate(info.class_names) if name in old}


@torch.no_grad()
def _copy_weights(old: SemanticUNet, new: SemanticUNet, planes: dict[int, int]) -> int:
    """Copies all weights that fit, and the matched planes of the mask convolutions.

    Returns:
        Number of copied weights.
    """
    source: dict[str, Tensor] = old.state_dict()
    # The plane of instance edges comes after those of the classes.
    edges = bool(old.config["instance_edges"])
    count = 0
    for name, tensor in new.state_dict().items():
        theirs = source.get(name)
        if theirs is None:
            continue
        if name.endswith(_MASK_WEIGHT):
            pairs = list(planes.items()) + ([(tensor.shape[1] - 1, theirs.shape[1] - 1)] if edges else [])
            for ours, their in pairs:
                tensor[:, ours] = theirs[:, their]
            count += len(pairs) * tensor[:, 0].numel()
        elif theirs.shape == tensor.shape:
            tensor.copy_(theirs)
            count += tensor.numel()
    return count


def _describe_classes(before: DatasetInfo, info: DatasetInfo, planes: dict[int, int]) -> list[str]:
    if not info.num_classes:
        return ["masks: no longer used"]
    kept = [info.class_names[index] for index in sorted(planes)]
    new = [name for index, name in enumerate(info.class_names) if index not in planes]
    dropped = [name for index, name in enumerate(before.class_names) if index not in planes.values()]
    lists = (("kept", kept), ("new", new), ("dropped", dropped))
    return [f"classes {word}: {', '.join(names)}" for word, names in lists if names]


def _describe_gray_levels(intensity: tuple[float, float]) -> str:
    """Mean ± standard deviation in gray levels of 0 to 255."""
    mean, deviation = intensity
    return f"{(mean + 1) * 127.5:.0f} ± {deviation * 127.5:.0f}"

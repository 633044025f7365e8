"""Transfer of a trained semantic diffusion model to other classes, another image size or other gray levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steelgen.data.conditions import Condition, outline
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators.autoencoder.codec import check_latent_size
from steelgen.generators.semantic_diffusion.building import measure_detail, measure_own_brightness
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.models.semantic_unet import SemanticUNet

_CONDITIONS = "condition_embedding.layers."
"""Start of the names of the weights of conditions; the number of the condition follows."""
_MASK_WEIGHT = ".shared.weight"
"""End of the names of the convolutions that see the mask, (hidden, mask channels, 3, 3); see `SpadeNorm`."""


def adapt(
    generator: SemanticDiffusion, micrographs: Micrographs, geometry: CropGeometry, keep_classes: bool
) -> tuple[SemanticDiffusion, str]:
    """Adapts a model to new micrographs: all weights that still fit are kept.

    Gray levels are standardized by the statistics of the new micrographs if the model standardizes at all. Mask planes
    of classes with the same name and embeddings of conditions with the same name are kept, those of others are new.

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
    told = micrographs.columns
    is_same = (before.class_names, generator.geometry.image_size) == (info.class_names, geometry.image_size)
    if not is_same or outline(generator.conditions) != outline(told):
        if generator.codec:
            check_latent_size(geometry.image_size, generator.codec, len(generator.network.config.channel_mult))
        network = _build_network(generator.network, info, geometry.image_size // generator.factor, told)
        planes = _match_planes(before, info, keep_classes)
        kept = _copy_weights(generator.network, network, planes)
        kept += _copy_conditions(generator, network, told)
        total = sum(parameter.numel() for parameter in network.parameters())
        notes.append(f"kept {kept:,} of {total:,} weights")
        if info.class_names != before.class_names:
            notes += _describe_classes(before, info, planes)
        notes += _describe_names("conditions", [each.name for each in generator.conditions], [c.name for c in told])
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
    adapted.conditions = told
    adapted.brightness = measure_own_brightness(adapted, micrographs)
    return adapted, "; ".join(notes)


def _build_network(old: SemanticUNet, info: DatasetInfo, size: int, conditions: Sequence[Condition]) -> SemanticUNet:
    """Builds the same network for other classes, conditions or edge of its images; attention stays at the same
    levels."""
    config = {name: value for name, value in old.config.items() if not name.startswith("_")}
    before = config["image_size"]
    if size % old.downsampling_factor:
        raise InputError(
            f"data.image_size {size}: must be a multiple of {old.downsampling_factor}; the checkpoint's network has "
            f"{len(config['channel_mult'])} levels"
            + (f" and patch_size {config['patch_size']}" if config["patch_size"] > 1 else "")
        )
    attended = [edge * size // before for edge in config["attention_resolutions"]]
    changed = {
        "image_size": size,
        "num_classes": info.num_classes,
        "attention_resolutions": attended,
        "conditions": [len(condition.categories) for condition in conditions],
    }
    return SemanticUNet(**{**config, **changed})


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
        if theirs is None or name.startswith(_CONDITIONS):
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


@torch.no_grad()
def _copy_conditions(old: SemanticDiffusion, new: SemanticUNet, conditions: Sequence[Condition]) -> int:
    """Copies the embeddings of conditions of the same name and kind; new categories are new.

    Returns:
        Number of copied weights.
    """
    source, count = old.network.state_dict(), 0
    places = {(each.name, bool(each.categories)): index for index, each in enumerate(old.conditions)}
    for index, condition in enumerate(conditions):
        place = places.get((condition.name, bool(condition.categories)))
        start = f"{_CONDITIONS}{index}."
        for name, tensor in new.state_dict().items():
            if place is not None and name.startswith(start):
                theirs = source[f"{_CONDITIONS}{place}.{name.removeprefix(start)}"]
                tensor[: len(theirs)] = theirs
                count += theirs.numel()
    return count


def _describe_classes(before: DatasetInfo, info: DatasetInfo, planes: dict[int, int]) -> list[str]:
    if not info.num_classes:
        return ["masks: no longer used"]
    kept = [info.class_names[index] for index in sorted(planes)]
    new = [name for index, name in enumerate(info.class_names) if index not in planes]
    dropped = [name for index, name in enumerate(before.class_names) if index not in planes.values()]
    return _describe_lists("classes", kept, new, dropped)


def _describe_names(what: str, before: Sequence[str], now: Sequence[str]) -> list[str]:
    kept, new = [name for name in now if name in before], [name for name in now if name not in before]
    return _describe_lists(what, kept, new, [name for name in before if name not in now])


def _describe_lists(what: str, kept: list[str], new: list[str], dropped: list[str]) -> list[str]:
    lists = (("kept", kept), ("new", new), ("dropped", dropped))
    return [f"{what} {word}: {', '.join(names)}" for word, names in lists if names]


def _describe_gray_levels(intensity: tuple[float, float]) -> str:
    """Mean ± standard deviation in gray levels of 0 to 255."""
    mean, deviation = intensity
    return f"{(mean + 1) * 127.5:.0f} ± {deviation * 127.5:.0f}"

"""Lookup of generator kinds.

Each kind is a subpackage with the name of the kind and three functions:

    build(section, micrographs, geometry) -> StoredGenerator
                                                           untrained, from its section of a training config
    load(folder) -> StoredGenerator                        from the output of `StoredGenerator.save`
    build_trainable(generator, config) -> Trainable        for training

and optionally

    adapt(generator, micrographs, geometry, keep_classes) -> tuple[StoredGenerator, str]
                                                           for micrographs with other classes, sizes or gray levels
    list_parts(generator) -> dict[str, list[Parameter]]    parts of the networks that fine-tuning may freeze, by name;
                                                           for kinds with a single network
    open_network(generator) -> DenoisingNetwork            the network as a source of features of images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelgen.config.generator import GENERATOR_KINDS, AnyGeneratorSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import Record, load_record
from steelgen.generators import Generator, StoredGenerator, Trainable
from steelgen.generators.features import DenoisingNetwork
from steelgen.generators.saved import DESCRIPTION_FILE, find_family, find_generator


class _Kind(Record):
    kind: str


def build_generator(config: AnyGeneratorSection, micrographs: Micrographs, geometry: CropGeometry) -> StoredGenerator:
    """Builds an untrained generator for the classes and gray levels of training micrographs."""
    return find_family(config.kind).build(config, micrographs, geometry)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """Prepares a generator for training with the config of a run."""
    return find_family(generator.kind).build_trainable(generator, config)


def adapt_generator(
    generator: StoredGenerator, micrographs: Micrographs, geometry: CropGeometry, keep_classes: bool
) -> tuple[StoredGenerator, str]:
    """Adapts a trained generator to new micrographs; new weights follow torch's global seed.

    Args:
        keep_classes: keep the weights of classes with the same name; otherwise all mask weights are new.

    Returns:
        The generator, and one line about what was kept and what is new; empty if nothing changed.

    Raises:
        InputError: if it would have to change, but generators of its kind cannot.
    """
    if can_adapt(generator):
        return find_family(generator.kind).adapt(generator, micrographs, geometry, keep_classes)
    info = micrographs.inputs.info
    if (generator.info.class_names, generator.geometry.image_size) != (info.class_names, geometry.image_size):
        raise InputError(
            f"{info.name}: a generator of kind {generator.kind} cannot be adapted to other classes or another "
            "image_size; train a new one"
        )
    return generator, ""


def can_adapt(generator: Generator) -> bool:
    """Returns whether generators of this kind can be adapted to other classes and sizes."""
    return hasattr(find_family(generator.kind), "adapt")


def freeze_parts(generator: Generator, names: Sequence[str]) -> str:
    """Freezes parts of a generator's networks: their parameters no longer require gradients.

    Returns:
        One line about what is frozen.

    Raises:
        InputError: if the generator has no such part, or nothing would be left to train.
    """
    family = find_family(generator.kind)
    if not hasattr(family, "list_parts"):
        raise InputError(f"freeze: not applicable to generators of kind {generator.kind}")
    parts = family.list_parts(generator)
    for name in names:
        if name not in parts:
            raise InputError(f"freeze: the generator has no part {name!r}; its parts are {', '.join(parts)}")
    if len(set(names)) == len(parts):
        raise InputError("freeze: names all parts of the generator, which leaves nothing to train")
    for name in names:
        for parameter in parts[name]:
            parameter.requires_grad_(False)
    every = [parameter for part in parts.values() for parameter in part]
    frozen = sum(parameter.numel() for parameter in every if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in every)
    return f"frozen: {', '.join(dict.fromkeys(names))} ({frozen:,} of {total:,} weights)"


def open_network(generator: Generator, origin: str) -> DenoisingNetwork:
    """Opens a diffusion model's network as a source of features.

    Args:
        origin: where the generator is from, for messages.

    Raises:
        InputError: if its network has no features of images alone.
    """
    family = find_family(generator.kind)
    if not hasattr(family, "open_network"):
        raise InputError(
            f"{origin}: generators of kind {generator.kind} have no features of images; use one of kind "
            "semantic_diffusion or joint_diffusion"
        )
    return family.open_network(generator)


def load_generator(path: Path) -> StoredGenerator:
    """Loads a trained generator.

    Args:
        path: a run folder (its export, or else its latest checkpoint), a checkpoint, an export, bundled:NAME, or an
            ISDM `.pt` file with its config beside it.

    Raises:
        InputError: if there is no generator, or it cannot be loaded.
    """
    if path.suffix == ".pt":
        return find_family("semantic_diffusion").load_file(path)
    folder = find_generator(path)
    kind = load_record(folder / DESCRIPTION_FILE, _Kind).kind
    if kind not in GENERATOR_KINDS:
        raise InputError(f"{folder / DESCRIPTION_FILE}: kind {kind!r}: must be one of {', '.join(GENERATOR_KINDS)}")
    return find_family(kind).load(folder)

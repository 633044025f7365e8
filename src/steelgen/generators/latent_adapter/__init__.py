"""Adapters of a pretrained Stable Diffusion: LoRA teaches it a material, a ControlNet makes it follow masks."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from steelgen.config.adapter import LatentAdapterSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators import Generator, Trainable


def build(section: LatentAdapterSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    check_installed()
    from steelgen.generators.latent_adapter.generator import build_latent_adapter

    return build_latent_adapter(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    check_installed()
    from steelgen.generators.latent_adapter.generator import load_latent_adapter

    return load_latent_adapter(folder)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.latent_adapter.generator import LatentAdapter
    from steelgen.generators.latent_adapter.training import LatentAdapterTraining

    assert isinstance(generator, LatentAdapter)
    return LatentAdapterTraining(generator, config)


def adapt(
    generator: Generator, micrographs: Micrographs, geometry: CropGeometry, keep_classes: bool
) -> tuple[Generator, str]:
    """See `steelgen.generators.families`: all weights are kept, since only a ControlNet depends on the classes."""
    from steelgen.generators.latent_adapter.generator import LatentAdapter, check_prompts

    assert isinstance(generator, LatentAdapter)
    before, info = generator.info.class_names, micrographs.info
    if generator.section.control is not None and info.class_names != before:
        raise InputError(
            f"{info.name}: a ControlNet for the classes {', '.join(before)} cannot be adapted to others; train a new "
            "one with this run as generator.lora"
        )
    generator.base.check_image_size(geometry.image_size)
    adapted = replace(generator, info=info, geometry=geometry)
    check_prompts(adapted)
    return adapted, ""


def check_installed() -> None:
    """Raises InputError if a package of the extra `adapters` is missing."""
    missing = [name for name in ("peft", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"generator.kind latent_adapter: {' and '.join(missing)} not installed; run `pip install "
            "'steelgen[adapters]'`"
        )

"""Generative adversarial networks."""

from __future__ import annotations

from pathlib import Path

from steelgen.config.generator import GanSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.generators import Generator, Trainable


def build(section: GanSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.gan.generator import build_gan

    return build_gan(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.gan.generator import load_gan

    return load_gan(folder)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.gan.generator import Gan
    from steelgen.generators.gan.training import GanTraining

    assert isinstance(generator, Gan)
    return GanTraining(generator, config)

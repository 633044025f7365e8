"""Rotation-invariant variational autoencoders, which describe islands by a few latents."""

from __future__ import annotations

from pathlib import Path

from steelgen.config.generator import RvaeSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.generators import Generator, Trainable


def build(section: RvaeSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.rvae.generator import build_rvae

    return build_rvae(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.rvae.generator import load_rvae

    return load_rvae(folder)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.rvae.generator import Rvae
    from steelgen.generators.rvae.training import RvaeTraining

    assert isinstance(generator, Rvae)
    return RvaeTraining(generator)

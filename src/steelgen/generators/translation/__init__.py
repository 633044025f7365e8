"""Unpaired translation of images, whose masks stay valid."""

from __future__ import annotations

from pathlib import Path

from steelgen.config.train import RunConfig
from steelgen.config.translation import TranslationSection
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.generators import Generator, Trainable


def build(section: TranslationSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.translation.generator import build_translator

    return build_translator(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.translation.generator import load_translator

    return load_translator(folder)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.translation.generator import Translator
    from steelgen.generators.translation.training import TranslationTraining

    assert isinstance(generator, Translator)
    return TranslationTraining(generator, config)

"""Mask-conditioned diffusion with a SPADE U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.generators import Generator, Trainable

if TYPE_CHECKING:
    from torch import nn


def build(section: SemanticDiffusionSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.semantic_diffusion.generator import build_semantic_diffusion

    return build_semantic_diffusion(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.semantic_diffusion.generator import load_semantic_diffusion

    return load_semantic_diffusion(folder)


def load_file(path: Path) -> Generator:
    """Loads an ISDM `.pt` file with its config beside it."""
    from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_isdm_settings, load_isdm_checkpoint

    return load_isdm_checkpoint(path, find_isdm_settings(path))


def describe_file(path: Path) -> dict[str, Any]:
    """Returns the settings of an ISDM `.pt` file, as JSON values."""
    from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_isdm_settings

    return find_isdm_settings(path).model_dump(mode="json")


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
    from steelgen.generators.semantic_diffusion.training import SemanticDiffusionTraining

    assert isinstance(generator, SemanticDiffusion)
    return SemanticDiffusionTraining(generator, config.diffusion)


def adapt(
    generator: Generator, micrographs: Micrographs, geometry: CropGeometry, keep_classes: bool
) -> tuple[Generator, str]:
    """See `steelgen.generators.families`."""
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
    from steelgen.generators.semantic_diffusion.transfer import adapt_semantic_diffusion

    assert isinstance(generator, SemanticDiffusion)
    return adapt_semantic_diffusion(generator, micrographs, geometry, keep_classes)


def list_parts(generator: Generator) -> dict[str, list[nn.Parameter]]:
    """See `steelgen.generators.families`."""
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
    from steelgen.generators.semantic_diffusion.parts import list_network_parts

    assert isinstance(generator, SemanticDiffusion)
    return list_network_parts(generator.network)

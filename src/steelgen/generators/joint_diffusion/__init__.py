"""Diffusion of image and mask together, with a noise level of its own for each."""

from __future__ import annotations

from pathlib import Path

from steelgen.config.joint import JointDiffusionSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.generators import Generator, Trainable


def build(section: JointDiffusionSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.joint_diffusion.generator import build_joint_diffusion

    return build_joint_diffusion(section, micrographs, geometry)


def load(folder: Path) -> Generator:
    """See `steelgen.generators.families`."""
    from steelgen.generators.joint_diffusion.generator import load_joint_diffusion

    return load_joint_diffusion(folder)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    from steelgen.generators.joint_diffusion.generator import JointDiffusion
    from steelgen.generators.joint_diffusion.training import JointDiffusionTraining

    assert isinstance(generator, JointDiffusion)
    return JointDiffusionTraining(generator, config.diffusion)

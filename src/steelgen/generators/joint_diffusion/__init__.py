"""Diffusion of image and mask together, with a noise level of its own for each.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.joint_diffusion.features import open_network
from steelgen.generators.joint_diffusion.generator import build_joint_diffusion as build
from steelgen.generators.joint_diffusion.generator import load_joint_diffusion as load
from steelgen.generators.joint_diffusion.training import build_trainable

__all__ = ["build", "build_trainable", "load", "open_network"]

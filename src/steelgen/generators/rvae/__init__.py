"""Rotation-invariant variational autoencoders, which describe islands by a few latents.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.rvae.generator import build_rvae as build
from steelgen.generators.rvae.generator import load_rvae as load
from steelgen.generators.rvae.training import build_trainable

__all__ = ["build", "build_trainable", "load"]

"""Generative adversarial networks.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.gan.generator import build_gan as build
from steelgen.generators.gan.generator import load_gan as load
from steelgen.generators.gan.training import build_trainable

__all__ = ["build", "build_trainable", "load"]

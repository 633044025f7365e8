"""Unpaired translation of images, whose masks stay valid.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.translation.generator import build_translator as build
from steelgen.generators.translation.generator import load_translator as load
from steelgen.generators.translation.training import build_trainable

__all__ = ["build", "build_trainable", "load"]

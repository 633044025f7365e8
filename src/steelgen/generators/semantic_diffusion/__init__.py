"""Mask-conditioned diffusion with a SPADE U-Net.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.semantic_diffusion.building import build_semantic_diffusion as build
from steelgen.generators.semantic_diffusion.features import open_network
from steelgen.generators.semantic_diffusion.generator import load_semantic_diffusion as load
from steelgen.generators.semantic_diffusion.isdm.checkpoint import describe_file, load_file
from steelgen.generators.semantic_diffusion.parts import list_parts
from steelgen.generators.semantic_diffusion.training import build_trainable
from steelgen.generators.semantic_diffusion.transfer import adapt

__all__ = ["adapt", "build", "build_trainable", "describe_file", "list_parts", "load", "load_file", "open_network"]

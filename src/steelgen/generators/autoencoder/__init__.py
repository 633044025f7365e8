"""Autoencoders of images and masks, below latent diffusion.

The functions of a family; see `steelgen.generators.families`.
"""

from steelgen.generators.autoencoder.generator import build_autoencoder as build
from steelgen.generators.autoencoder.generator import load_autoencoder as load
from steelgen.generators.autoencoder.training import build_trainable

__all__ = ["build", "build_trainable", "load"]

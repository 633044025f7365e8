"""Config sections of segmenters that classify pixels by given features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from steelgen.config.base import MAX_BATCH_SIZE, MAX_LEARNING_RATE, MAX_STEPS, MAX_TIMESTEPS, Section, by_kind


class _HeadsSection(Section):
    """Small classifiers of pixels and their training."""

    ensemble_size: int = Field(10, ge=2, le=100)
    """Classifiers; their mean is the prediction, and their agreement the confidence."""
    crops: int = Field(256, ge=1, le=1_000_000)
    """Random, augmented crops whose pixels train the classifiers; features of each are computed once."""
    pixels_per_crop: int = Field(256, ge=1, le=1_000_000)
    """Pixels kept of each crop, with probabilities proportional to 1/√(area of their class); fewer if all would take
    more than 1 GiB."""
    steps: int = Field(1000, ge=1, le=MAX_STEPS)
    """Optimizer steps."""
    batch_size: int = Field(256, ge=2, le=MAX_BATCH_SIZE)
    """Pixels per step; every classifier has its own."""
    learning_rate: float = Field(1e-3, gt=0, le=MAX_LEARNING_RATE)
    """Peak learning rate of Adam."""


class DiffusionFeaturesSection(_HeadsSection):
    """Features of a diffusion model's network (Baranchuk et al. 2022, arXiv 2112.03126): an image gets noise, always
    the same, and passes the network without its mask; blocks of the decoder give the features."""

    kind: Literal["diffusion"] = "diffusion"
    """Kind of features."""
    generator: Path
    """Run folder, checkpoint, export, or bundled model of kind semantic_diffusion or joint_diffusion, of the channels
    and the scale of the segmenter. Its weights are copied into output_dir."""
    timesteps: list[Annotated[int, Field(ge=0, lt=MAX_TIMESTEPS)]] = Field([50], min_length=1, max_length=16)
    """Timesteps of the generator's noise schedule; each is a pass of the network. Baranchuk et al. take 50, 150, and
    250 of 1,000."""
    blocks: list[Annotated[int, Field(ge=1, le=1000)]] | None = Field(None, min_length=1)
    """Blocks of the decoder, 1 for the coarsest; null takes all."""

    @model_validator(mode="after")
    def _check_repeats(self) -> DiffusionFeaturesSection:
        for name in ("timesteps", "blocks"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {values}: names one twice")
        return self


class MultiscaleFeaturesSection(_HeadsSection):
    """Gray levels, edges, and textures at several scales (skimage.feature.multiscale_basic_features), as interactive
    pixel classifiers use."""

    kind: Literal["multiscale"]
    """Kind of features."""
    sigma_max: float = Field(16.0, ge=1, le=256)
    """Largest standard deviation of the Gaussian filters, px; the smallest is 0.5, and each is twice the last."""


AnyFeaturesSection = Annotated[
    Annotated[DiffusionFeaturesSection, Tag("diffusion")] | Annotated[MultiscaleFeaturesSection, Tag("multiscale")],
    by_kind("diffusion", "multiscale"),
]

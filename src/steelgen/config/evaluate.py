"""The config of `steelgen evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from steelgen.config.base import (
    MAX_BATCH_SIZE,
    MAX_CROP_SIZE,
    MAX_IMAGE_SIZE,
    MAX_IMAGES,
    MAX_SEED,
    FactorRange,
    Section,
)
from steelgen.config.segmenter import SegmenterSection


class FeaturesSection(Section):
    """The networks whose features images are compared on."""

    kinds: list[str] = Field(default=["efficientnet-lite0"], min_length=1)
    """efficientnet-lite0, inception, a TorchScript file (.pt), rvae:PATH of a trained generator of that kind that sees
    gray levels on a grid, or module:function; one or several."""
    inception_weights: Path | None = None
    """The published Inception state dict (.pth or .safetensors); null looks in the cache."""
    batch_size: int | None = Field(default=None, ge=1, le=MAX_BATCH_SIZE)
    """Images a forward pass; null takes 4 on a CPU, whose cache larger batches overflow, and 64 on a GPU."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class GeometrySection(Section):
    """How real micrographs are cut to be comparable; null takes what sampling.json says."""

    image_size: int | None = Field(default=None, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the images compared, in pixels."""
    crop_size: int | None = Field(default=None, ge=16, le=MAX_CROP_SIZE)
    """Edge of the square cut from a micrograph, in its own pixels."""
    scale_range: FactorRange | None = None
    """Each crop's edge is crop_size times a factor drawn from this range."""
    in_channels: Literal[1, 3] | None = None
    """1 compares gray images, 3 RGB."""


class MicrostructureSection(Section):
    """Descriptors of the masks, and of what the segmenter sees in the images."""

    max_images: int = Field(default=256, ge=1, le=MAX_IMAGES)
    """Images of each set that are measured; the first ones."""


class MemorizationSection(Section):
    """The search for training images among the generated ones."""

    max_images: int = Field(default=128, ge=2, le=MAX_IMAGES)
    """Images of each set that are searched for; the first ones. 0.1 to 0.2 s each on two cores."""
    search_size: int = Field(default=32, ge=8, le=1024)
    """px edge at which pixels are compared."""


class EvaluateConfig(Section):
    """Everything that `steelgen evaluate` needs to judge a folder of generated images."""

    generated: Path
    """What `steelgen sample` wrote, in either output format, or any folder of images, with or without masks/."""
    dataset: Path
    """The real dataset folder."""
    output_dir: Path
    """Where evaluation.json goes; must be new or empty."""
    held_out_split: str = "test"
    """The real split that the generator never saw: the reference that counts."""
    train_split: str = "train"
    """The real split that the generator was trained on."""
    num_real: int | None = Field(default=None, ge=4, le=MAX_IMAGES)
    """Real crops of each split; null takes as many as there are generated images."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of the crops, the segmenter and the KID subsets."""
    geometry: GeometrySection = GeometrySection()
    features: FeaturesSection = FeaturesSection()
    segmenter: SegmenterSection = SegmenterSection()
    microstructure: MicrostructureSection = MicrostructureSection()
    memorization: MemorizationSection = MemorizationSection()
    descriptors: Path | None = None
    """A trained generator of kind rvae, by whose latents islands are compared and the strangest shown; null: none."""
    utility: Path | None = None
    """Output folder of a finished `steelgen utility`, which the report then shows; null: none."""
    cache_dir: Path | None = None
    """Folder of features, segmenters and weights; null takes $STEELGEN_CACHE or ~/.cache/steelgen."""
    device: str = "auto"
    """A torch device; auto takes a GPU where there is one."""

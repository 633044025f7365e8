"""Config of `steelgen evaluate`."""

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
    """Feature networks for FD, KID, precision and recall."""

    kinds: list[str] = Field(default=["efficientnet-lite0"], min_length=1)
    """One or several of efficientnet-lite0, inception, a TorchScript file (.pt), rvae:PATH (a trained generator of kind
    rvae on gray levels of a grid), module:function."""
    inception_weights: Path | None = None
    """Published Inception state dict (.pth or .safetensors); null uses the file in the cache."""
    batch_size: int | None = Field(default=None, ge=1, le=MAX_BATCH_SIZE)
    """Images per forward pass; null uses 4 on a CPU, whose cache larger batches exceed, and 64 on a GPU."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class GeometrySection(Section):
    """Geometry of the real crops; null uses the value in sampling.json, else that of the generated images."""

    image_size: int | None = Field(default=None, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the compared images, in pixels."""
    crop_size: int | None = Field(default=None, ge=16, le=MAX_CROP_SIZE)
    """Edge of the crop of a micrograph, in micrograph pixels."""
    scale_range: FactorRange | None = None
    """Range of random factors of crop_size."""
    in_channels: Literal[1, 3] | None = None
    """Channels of the compared images: 1 for gray, 3 for RGB."""


class MicrostructureSection(Section):
    """Descriptors of given and predicted masks."""

    max_images: int = Field(default=256, ge=1, le=MAX_IMAGES)
    """Maximum number of images of each set that are measured, the first ones."""


class MemorizationSection(Section):
    """Search of the training micrographs for generated images."""

    max_images: int = Field(default=128, ge=2, le=MAX_IMAGES)
    """Maximum number of images of each set that are searched for, the first ones. 0.1 to 0.2 s each on two cores."""
    search_size: int = Field(default=32, ge=8, le=1024)
    """Edge in px of the shrunk images in the search; smaller is faster and more tolerant of noise."""
    search_masks: bool | None = None
    """Search the training masks for the generated masks, too. null does where sampling.json says that masks are new:
    those of a generator that makes masks, and those of the mask sources learned and procedural."""
    search_details: bool | None = None
    """Also search at full resolution for a patch of search_size px of each of the first 32 images, if these are at
    least twice as large. null does where sampling.json names the stages of a cascade."""


class EvaluateConfig(Section):
    """Evaluation of a folder of generated images against real micrographs."""

    generated: Path
    """Samples folder in either output format, or any folder of images, with or without masks/."""
    dataset: Path
    """Dataset folder of real micrographs."""
    output_dir: Path
    """Output folder of evaluation.json and report.html; must be new or empty."""
    held_out_split: str = "test"
    """Split not used to train the generator, the main reference."""
    train_split: str = "train"
    """Split that the generator was trained on."""
    num_real: int | None = Field(default=None, ge=4, le=MAX_IMAGES)
    """Real crops of each split; null uses the number of generated images."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of crops, segmenter, KID subsets and resamples."""
    geometry: GeometrySection = GeometrySection()
    features: FeaturesSection = FeaturesSection()
    segmenter: SegmenterSection = SegmenterSection()
    microstructure: MicrostructureSection = MicrostructureSection()
    memorization: MemorizationSection = MemorizationSection()
    descriptors: Path | None = None
    """A trained generator of kind rvae, by whose latents islands are compared and the strangest shown; null: none."""
    utility: Path | None = None
    """Output folder of a finished `steelgen utility` to include in the report; null includes none."""
    cache_dir: Path | None = None
    """Folder of cached features, segmenters and weights; null uses $STEELGEN_CACHE or ~/.cache/steelgen."""
    device: str = "auto"
    """Torch device; auto uses a GPU if there is one."""

"""The config of `steelgen segment train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, MAX_SEED, MAX_STEPS, FactorRange, Section
from steelgen.config.segmenter import SegmenterSection


class SegmentConfig(Section):
    """The baseline segmenter of a dataset: trained on its real micrographs, to label others."""

    dataset: Path
    """The real dataset folder."""
    output_dir: Path
    """Gets segmenter.safetensors, segmenter.json and scores.json; must be new or empty."""
    train_split: str = "train"
    """The split that it learns from."""
    test_split: str = "test"
    """The split that it is scored on, once."""
    val_split: str | None = "val"
    """The split that chooses the best step and ends training early; null, or a split that the dataset lacks: none, and
    the last step counts."""
    validate_every: int = Field(default=50, ge=1, le=MAX_STEPS)
    """Steps between validations."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Validations without a new best after which training ends; null trains all steps."""
    image_size: int = Field(default=256, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the windows that are labeled at once, px."""
    crop_size: int = Field(default=256, ge=16, le=MAX_CROP_SIZE)
    """Edge of the windows in the micrographs, px; crop_size / image_size is the shrinkage, 1 by default: thin classes
    are lost first."""
    scale_range: FactorRange = (1.0, 1.0)
    """In training each crop's edge is crop_size times a factor drawn from this range, and from that of segmenter."""
    in_channels: Literal[1, 3] = 1
    """1 for gray micrographs, 3 for RGB."""
    segmenter: SegmenterSection = SegmenterSection(steps=1000, batch_size=6, train_size=160, flips=True)
    """Size and training of the network."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of the weights and the crops."""
    device: str = "auto"
    """A torch device; auto takes a GPU where there is one."""

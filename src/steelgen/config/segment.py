"""The config of `steelgen segment train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, MAX_SEED, FactorRange, Section
from steelgen.config.evaluate import SegmenterSection


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
    image_size: int = Field(default=128, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the windows that the network sees, px."""
    crop_size: int = Field(default=256, ge=16, le=MAX_CROP_SIZE)
    """Edge of the windows in the micrographs, px; crop_size / image_size is the shrinkage."""
    scale_range: FactorRange = (0.8, 1.25)
    """In training each crop's edge is crop_size times a factor drawn from this range."""
    in_channels: Literal[1, 3] = 1
    """1 for gray micrographs, 3 for RGB."""
    segmenter: SegmenterSection = SegmenterSection(steps=1500)
    """Size and training of the network."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of the weights and the crops."""
    device: str = "auto"
    """A torch device; auto takes a GPU where there is one."""

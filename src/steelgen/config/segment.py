"""Config of `steelgen segment train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, MAX_SEED, MAX_STEPS, FactorRange, Section
from steelgen.config.segmenter import SegmenterSection


class SegmentConfig(Section):
    """Segmenter trained on the real micrographs of a dataset, for labeling other images."""

    dataset: Path
    """Dataset folder of real micrographs."""
    output_dir: Path
    """Output folder of segmenter.safetensors, segmenter.json, and scores.json; must be new or empty."""
    train_split: str = "train"
    """Split to train on."""
    test_split: str = "test"
    """Held-out split, scored once."""
    val_split: str | None = "val"
    """Split for selecting the best step and early stopping; null, or a split the dataset lacks, keeps the last step."""
    validate_every: int = Field(default=50, ge=1, le=MAX_STEPS)
    """Steps between validations."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Validations without a new best before training stops; null trains all steps."""
    image_size: int = Field(default=256, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the windows the network sees, px."""
    crop_size: int = Field(default=256, ge=16, le=MAX_CROP_SIZE)
    """Edge of the same windows in the micrographs, px. A larger crop_size than image_size downsamples, which loses thin
    classes first."""
    scale_range: FactorRange = (1.0, 1.0)
    """Range of the random factor on crop_size in training, on top of segmenter.scale_range."""
    in_channels: Literal[1, 3] = 1
    """1 for gray micrographs, 3 for RGB."""
    segmenter: SegmenterSection = SegmenterSection(steps=1000, batch_size=6, train_size=160, flips=True)
    """Network and training."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights and crops."""
    device: str = "auto"
    """Torch device; auto uses a GPU if there is one."""

"""Config of `steelgen segment train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, MAX_SEED, MAX_STEPS, FactorRange, Section
from steelgen.config.features import AnyFeaturesSection
from steelgen.config.segmenter import SegmenterSection

_DEFAULT = SegmenterSection(steps=1000, batch_size=6, train_size=160, flips=True)
_OF_NETWORKS = (
    "architecture",
    "weights",
    "steps",
    "max_minutes",
    "batch_size",
    "learning_rate",
    "encoder_factor",
    "frozen_share",
    "base_channels",
    "num_levels",
    "enlargement",
)
"""Settings of `SegmenterSection` for networks that are trained whole."""


class SegmentConfig(Section):
    """Segmenter trained on the real micrographs of a dataset, for labeling other images."""

    dataset: Path
    """Dataset folder of real micrographs."""
    output_dir: Path
    """Output folder of segmenter.safetensors, segmenter.json, and scores.json, with features of a generator also of its
    copy generator/, with `unlabeled` of dataset/; must be new or empty."""
    unlabeled: Path | None = None
    """Folder of further images, or a dataset folder, whose training split the segmenter labels after training. With the
    micrographs of `dataset` they become the dataset folder dataset/ in `output_dir`, for generators to be trained on.
    It may hold the micrographs of `dataset` too: images of the same name are left out."""
    train_split: str = "train"
    """Split to train on."""
    test_split: str | None = "test"
    """Held-out split, scored once; null gives no scores."""
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
    segmenter: SegmenterSection = _DEFAULT
    """Network and training; with `features`, only crops, gray levels, and averaging."""
    features: AnyFeaturesSection | None = None
    """Given features, on which small pixel classifiers are trained in place of a network; null trains the network of
    `segmenter`."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights and crops."""
    device: str = "auto"
    """Torch device; auto uses a GPU if there is one."""

    @model_validator(mode="after")
    def _check_features(self) -> SegmentConfig:
        if self.features is None:
            return self
        for name in _OF_NETWORKS:
            value = getattr(self.segmenter, name)
            if value not in (getattr(_DEFAULT, name), SegmenterSection.model_fields[name].default):
                raise ValueError(
                    f"segmenter.{name} {value!r}: not applicable with features, which has its own training"
                )
        if self.segmenter.augmentation.cutmix_share:
            raise ValueError("segmenter.augmentation.cutmix_share: not applicable with features")
        return self

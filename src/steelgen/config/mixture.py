"""Config section of one of several training datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, FactorRange, Section


class MixedDataset(Section):
    """One of several datasets that a generator is trained on together."""

    dataset: Path
    """A dataset folder, or a plain folder of images, which has no masks."""
    split: Literal["train", "val", "test"] = "train"
    """The split to train on."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """Share of the crops from this dataset, relative to the other weights; independent of its number of micrographs."""
    crop_size: int | None = Field(None, ge=8, le=MAX_CROP_SIZE)
    """Edge of the crops in pixels of the micrograph, resized to data.image_size; null uses data.crop_size."""
    scale_range: FactorRange | None = None
    """Range of a random factor on crop_size; null uses data.scale_range."""
    unconditional: bool = False
    """Ignores the masks: every crop has the null mask, as in a dataset without masks."""

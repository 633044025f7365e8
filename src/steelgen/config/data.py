"""Config sections of training micrographs and their crops."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, FactorRange, Section


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


class SourceSection(Section):
    """Images to translate, in training without a pair among the micrographs of data.dataset."""

    dataset: Path
    """A dataset folder, or a plain folder of images."""
    split: Literal["train", "val", "test"] = "train"
    """The split to train on."""


class DataSection(Section):
    """Training micrographs and their crops."""

    dataset: Path | None = None
    """A dataset folder (see `steelgen data import`); null with `datasets`."""
    datasets: list[MixedDataset] = []
    """Several dataset folders instead of one, their crops mixed in fixed shares and their classes side by side. A
    dataset without masks trains the null mask."""
    merge_classes: bool = False
    """Classes of the same name in several of `datasets` are one class; false keeps them apart as DATASET/CLASS."""
    split: Literal["train", "val", "test"] = "train"
    """The split to train on."""
    source: SourceSection | None = None
    """Images that generator.kind translation turns into images like those of `dataset`. Their crops have the same
    crop_size, image_size and flips; their masks become the labels, and those of `dataset` are not used."""
    image_size: int = Field(64, ge=8, le=MAX_IMAGE_SIZE)
    """Edge of the network's images, in pixels."""
    crop_size: int | None = Field(None, ge=8, le=MAX_CROP_SIZE)
    """Edge of the square crops in pixels of the micrograph, resized to image_size; null uses image_size."""
    scale_range: FactorRange = (1.0, 1.0)
    """Range of a random factor on crop_size, log-uniform per crop."""
    in_channels: Literal[1, 3] = 1
    """1 for gray micrographs (rules out a tint), 3 for RGB."""
    augment: bool | Literal["mirror"] = True
    """Random flips and 90° rotations of each crop, for materials without a preferred direction; "mirror" flips half the
    crops left to right."""
    num_classes: int | None = Field(None, ge=1, le=255)
    """Classes of a dataset without dataset.json whose masks may not contain all of them; null counts those found."""
    unconditional: bool = False
    """Ignores the masks and trains an unconditional generator; implied for datasets without masks."""
    conditions: list[str] = []
    """Columns of metadata.jsonl that the generator is told of each micrograph: numbers, such as a temperature, or
    categories, such as a type of steel. They are left out as often as masks (diffusion.mask_dropout), so that sampling
    may leave them open. For semantic_diffusion."""
    any_angle: bool = False
    """Also rotates each crop by a random angle; the micrograph is mirrored at its edges."""
    brightness: float = Field(0.0, ge=0, le=0.5)
    """Maximum random change of brightness, as a share of the gray range; 0 disables it."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Random contrast factor between exp(-contrast) and exp(contrast); 0 disables it."""
    num_workers: int | None = Field(None, ge=0, le=1024)
    """Data loader processes; null uses none on a CPU and up to 8 with a GPU."""

    @model_validator(mode="after")
    def _check_datasets(self) -> DataSection:
        if (self.dataset is None) != bool(self.datasets):
            raise ValueError("either dataset or datasets is required" + (", not both" if self.datasets else ""))
        unused = "merge_classes" if self.merge_classes else ""
        if self.datasets:
            unused = "num_classes" if self.num_classes is not None else "split" if self.split != "train" else ""
            unused = "source" if self.source else unused
        if unused:
            raise ValueError(f"{unused}: not applicable {'with' if self.datasets else 'without'} datasets")
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError("conditions: names a column twice")
        return self

    @property
    def folders(self) -> list[Path]:
        """The dataset folders, one or several."""
        return [each.dataset for each in self.datasets] if self.dataset is None else [self.dataset]

    @property
    def splits(self) -> list[str]:
        """The training split of each of `folders`."""
        return [each.split for each in self.datasets] or [self.split]

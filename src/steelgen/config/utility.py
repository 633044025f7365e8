"""The config of `steelgen utility`, and the codes that name its training sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from steelgen.config.base import MAX_BATCH_SIZE, MAX_LEARNING_RATE, MAX_SEED, MAX_STEPS, Section
from steelgen.config.evaluate import GeometrySection
from steelgen.config.segmenter import Architecture, AugmentationSection

_CODE = re.compile(r"R(?P<real>ALL|\d+|\d+(?:\.\d+)?%)F(?P<generated>ALL|\d+)")


@dataclass(frozen=True)
class DataCode:
    """R<n|p%|ALL>F<m|ALL>: train on n real micrographs (or p % of them) and m generated pairs."""

    text: str
    """As it was written."""
    real: str
    """ALL, a number or a percentage."""
    generated: str
    """ALL or a number."""

    def count_real(self, available: int) -> int:
        """How many of `available` micrographs it takes; a percentage is rounded, but never to none.

        Raises:
            ValueError: if it is more than there are.
        """
        if self.real == "ALL":
            return available
        if self.real.endswith("%"):
            return max(1, int(available * float(self.real[:-1]) / 100 + 0.5))
        return _check_count(self.text, int(self.real), available, "real micrographs")

    def count_generated(self, available: int) -> int:
        """How many of `available` generated pairs it takes.

        Raises:
            ValueError: if it is more than there are.
        """
        if self.generated == "ALL":
            return available
        return _check_count(self.text, int(self.generated), available, "generated pairs")

    @property
    def needs_generated(self) -> bool:
        """Whether any generated pair is trained on."""
        return self.generated == "ALL" or int(self.generated) > 0


def parse_code(text: str) -> DataCode:
    """Reads a code such as RALLF000, R000FALL, R100F400 or R25%FALL.

    Raises:
        ValueError: if it is none, or stands for no data at all.
    """
    match = _CODE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no code R<n|p%|ALL>F<m|ALL>, e.g. RALLF000, R100F400 or R25%FALL")
    code = DataCode(text, match["real"], match["generated"])
    if code.real.endswith("%") and not 0 < float(code.real[:-1]) <= 100:
        raise ValueError(f"{text!r}: the share of the micrographs must be above 0 and at most 100 %")
    if code.real.isdigit() and int(code.real) == 0 and not code.needs_generated:
        raise ValueError(f"{text!r} trains on nothing")
    return code


class UtilityTrainingSection(Section):
    """How every segmentation network of the study is trained."""

    steps: int = Field(default=300, ge=1, le=MAX_STEPS)
    """Optimiser steps, the same for every code: more data is not more training."""
    batch_size: int = Field(default=16, ge=2, le=MAX_BATCH_SIZE)
    """Images a step."""
    learning_rate: float = Field(default=2e-3, gt=0, le=MAX_LEARNING_RATE)
    """AdamW's, at the peak of the schedule."""
    weight_decay: float = Field(default=0.01, ge=0, le=1000)
    """AdamW's decoupled weight decay."""
    weights: str | None = "auto"
    """Of encoders, see `segmenter.weights` of evaluate: auto, imagenet, micronet, a file or null."""
    encoder_factor: float = Field(default=0.2, ge=0, le=1)
    """Share of the learning rate for a pretrained encoder; 0 leaves it as it is."""
    frozen_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the training in which a pretrained encoder is not trained yet."""
    enlargement: float | None = Field(default=1.0, ge=1, le=4)
    """How much larger than they are the networks see their images; null enlarges them up to twice, until the thinnest
    class is 3 px wide."""
    loss: Literal["ce", "dice", "ce+dice"] = "ce+dice"
    """Cross-entropy weighted by the inverse root of the class frequencies, soft Dice, or their sum."""
    base_channels: int = Field(default=16, ge=8, multiple_of=8, le=1024)
    """Width that all built-in architectures are scaled by; those of smp: have their encoder's."""
    augment: bool = True
    """Draw one of the 8 flips and rotations for each image."""
    brightness: float = Field(default=0.1, ge=0, le=0.5)
    """Add or take away up to this share of the gray range, at random."""
    contrast: float = Field(default=0.25, ge=0, le=1)
    """Multiply contrast by a random factor between exp(-contrast) and exp(contrast)."""
    augmentation: AugmentationSection | None = None
    """Stronger changes of real and generated images alike, in place of brightness and contrast; null: none."""
    real_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of real images in the batches of a code that has both kinds; null: as many as there are crops of each."""
    schedule: Literal["mixed", "pretrain"] = "mixed"
    """mixed draws both kinds in every batch; pretrain begins with generated images alone and ends with real ones."""
    pretrain_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps that `pretrain` spends on generated images."""
    validate_every: int = Field(default=50, ge=1, le=MAX_STEPS)
    """Steps between validations; the weights with the best validation mIoU are those tested."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Validations without a new best after which training ends; null trains all steps."""


class UtilityConfig(Section):
    """Does generated data help? Codes × architectures × seeds → mIoU on held-out real micrographs."""

    dataset: Path
    """The real dataset folder."""
    generated: Path | None = None
    """What `steelgen sample` wrote, or a folder with images/ and masks/; null where no code needs it."""
    generated_masks: Path | None = None
    """Folder of the masks, where it does not lie beside the images; then `generated` holds the images."""
    output_dir: Path
    """Gets cells/, utility.json and utility.html; a study that was stopped goes on."""
    codes: list[str] = Field(default=["RALLF000", "RALLFALL"], min_length=1)
    """Training sets R<n|p%|ALL>F<m|ALL>: n micrographs of the training split, m generated pairs."""
    architectures: list[Architecture] = Field(default=["unetplusplus", "segformer", "deeplabv3plus"], min_length=1)
    """unet, unet:efficientnet-lite0 (-lite1, -lite2), unetplusplus, segformer, deeplabv3plus, upernet, smp:NAME or
    smp:NAME:ENCODER."""
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(default=[0, 1, 2], min_length=1)
    """Of the subset of micrographs, the weights and the crops; cells of one seed are paired."""
    train_split: str = "train"
    """The split that real micrographs are taken from."""
    val_split: str | None = "val"
    """The split that chooses the best step; null holds back val_share of the training split."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """With val_split null: share of the training micrographs that are validated on instead."""
    test_split: str = "test"
    """The held-out split, predicted once by each network."""
    num_classes: int | None = Field(default=None, ge=1, le=255)
    """Classes that the dataset must have; null: those it has."""
    geometry: GeometrySection = GeometrySection()
    training: UtilityTrainingSection = UtilityTrainingSection()
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """Precision of the networks; auto takes bf16 where the machine has it, and is recorded as what it took."""
    num_bootstrap: int = Field(default=2000, ge=100, le=100000)
    """Resamples behind each 95 % interval of a difference."""
    device: str = "auto"
    """A torch device; auto takes a GPU where there is one."""

    @field_validator("codes")
    @classmethod
    def _check_codes(cls, codes: list[str]) -> list[str]:
        for text in codes:
            parse_code(text)
        return _check_unique("codes", codes)

    @field_validator("architectures")
    @classmethod
    def _check_architectures(cls, names: list[str]) -> list[str]:
        return _check_unique("architectures", names)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        return _check_unique("seeds", seeds)

    @model_validator(mode="after")
    def _check(self) -> UtilityConfig:
        for text in self.codes:
            if self.generated is None and parse_code(text).needs_generated:
                raise ValueError(f"code {text} needs generated pairs, but generated is null")
        if self.test_split in (self.train_split, self.val_split):
            raise ValueError(f"test_split {self.test_split!r} is also trained or validated on; nothing is held out")
        if self.val_split == self.train_split:
            raise ValueError(f"val_split {self.val_split!r} is also the train_split; null holds back a share of it")
        return self


def _check_count(text: str, count: int, available: int, kind: str) -> int:
    if count > available:
        raise ValueError(f"{text}: {count} {kind} asked for, there are {available}")
    return count


def _check_unique(name: str, values: list) -> list:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name}: {value!r} stands there twice")
    return values

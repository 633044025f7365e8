"""Config of `steelgen utility` and the codes of its training sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from steelgen.config.base import MAX_BATCH_SIZE, MAX_LEARNING_RATE, MAX_SEED, MAX_STEPS, Section
from steelgen.config.evaluate import GeometrySection
from steelgen.config.segmenter import Architecture, AugmentationSection

FOLD = "{fold}"
"""Stands for the name of a fold in paths."""
_CODE = re.compile(r"R(?P<real>ALL|\d+|\d+(?:\.\d+)?%)F(?P<generated>ALL|\d+)(?P<pasted>P?)(?P<predicted>L?)")


@dataclass(frozen=True)
class DataCode:
    """R<n|p%|ALL>F<m|ALL>[P][L]: train on n (or p %) of the real micrographs and m generated pairs; P: with copy-paste;
    L: with unlabeled micrographs and the masks that a segmenter predicts for them."""

    text: str
    real: str
    """ALL, a number or a percentage."""
    generated: str
    """ALL or a number."""
    pasted: bool
    """Paste islands of the real micrographs into the real crops."""
    predicted: bool
    """Add micrographs with predicted masks to the real ones."""

    def count_real(self, available: int) -> int:
        """Number of micrographs; a percentage is rounded to at least one.

        Raises:
            ValueError: if there are fewer.
        """
        if self.real.endswith("%"):
            return max(1, int(available * float(self.real[:-1]) / 100 + 0.5))
        return self._count(self.real, available, "real micrographs")

    def count_generated(self, available: int) -> int:
        """Number of generated pairs.

        Raises:
            ValueError: if there are fewer.
        """
        return self._count(self.generated, available, "generated pairs")

    def _count(self, text: str, available: int, kind: str) -> int:
        count = available if text == "ALL" else int(text)
        if count > available:
            raise ValueError(f"{self.text}: needs {count} {kind}, there are {available}")
        return count

    @property
    def needs_generated(self) -> bool:
        """Whether there are generated pairs in the training set."""
        return self.generated == "ALL" or int(self.generated) > 0

    @property
    def rivals(self) -> str:
        """What is added to the real micrographs without a generator, such as "copy-paste"; empty if nothing is."""
        return " and ".join(["copy-paste"] * self.pasted + ["predicted masks"] * self.predicted)


def parse_code(text: str) -> DataCode:
    """Parses a code such as RALLF000, R000FALL, R100F400, R25%FALL or RALLF000P.

    Raises:
        ValueError: if it is not a code, selects no data, or has no real micrographs to paste from.
    """
    code = _read_code(text)
    if code is None:
        raise ValueError(f"{text!r} is not a code R<n|p%|ALL>F<m|ALL>[P][L], such as RALLF000, R100F400 or R25%FALL")
    if code.real.endswith("%") and not 0 < float(code.real[:-1]) <= 100:
        raise ValueError(f"{text!r}: the percentage must be above 0 and at most 100")
    if code.real.isdigit() and int(code.real) == 0 and not code.needs_generated:
        raise ValueError(f"{text!r} selects no training data")
    if code.pasted and code.real.isdigit() and int(code.real) == 0:
        raise ValueError(f"{text!r} has no real micrographs to copy islands from")
    if code.predicted and code.real != "ALL":
        raise ValueError(f"{text!r}: masks are predicted by a segmenter of all real micrographs, so L needs RALL")
    return code


def find_rivals(text: str) -> str:
    """See `DataCode.rivals`; empty for any other text, as in a foreign result file."""
    code = _read_code(text)
    return code.rivals if code else ""


def _read_code(text: str) -> DataCode | None:
    """Reads a code, whether or not it selects data; None for any other text."""
    match = _CODE.fullmatch(text)
    return match and DataCode(text, match["real"], match["generated"], bool(match["pasted"]), bool(match["predicted"]))


class PasteSection(Section):
    """Copy-paste of islands between real crops, in codes with P: the cheap rival of generated pairs."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of real crops into which islands of another real crop are pasted."""
    islands: float = Field(default=0.5, gt=0, le=1)
    """Probability of each island of the other crop; islands of the most common class are never pasted."""
    blend: float = Field(default=1.0, ge=0, le=10)
    """Standard deviation of the Gaussian that blends the edges, px; 0 cuts sharply."""


class UtilityTrainingSection(Section):
    """Training of every segmentation network of the study."""

    steps: int = Field(default=300, ge=1, le=MAX_STEPS)
    """Optimizer steps, the same for every code, so that more data does not mean more training."""
    batch_size: int = Field(default=16, ge=2, le=MAX_BATCH_SIZE)
    """Images per step."""
    learning_rate: float = Field(default=2e-3, gt=0, le=MAX_LEARNING_RATE)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0, le=1000)
    """Decoupled weight decay of AdamW."""
    weights: str | None = "auto"
    """Encoder weights: auto, imagenet, micronet, a file, or null; see segmenter.weights of `steelgen evaluate`."""
    encoder_factor: float = Field(default=0.2, ge=0, le=1)
    """Learning-rate factor of a pretrained encoder; 0 freezes it."""
    frozen_share: float = Field(default=0.05, ge=0, lt=1)
    """Initial fraction of training during which a pretrained encoder is frozen."""
    enlargement: float | None = Field(default=1.0, ge=1, le=4)
    """Upsampling factor of images before the networks; null: the factor, at most 2, that makes the thinnest class 3 px
    wide."""
    loss: Literal["ce", "dice", "ce+dice"] = "ce+dice"
    """Cross-entropy with class weights proportional to 1/√frequency, soft Dice, or their sum."""
    base_channels: int = Field(default=16, ge=8, multiple_of=8, le=1024)
    """Width of the built-in architectures; does not affect pretrained encoders or smp:."""
    augment: bool = True
    """Apply a random flip or quarter turn (8 in total) to each image."""
    brightness: float = Field(default=0.1, ge=0, le=0.5)
    """Largest random brightness shift up or down, as a fraction of the gray range; 0 disables it."""
    contrast: float = Field(default=0.25, ge=0, le=1)
    """Contrast is multiplied by a random factor between exp(-contrast) and exp(contrast); 0 disables it."""
    augmentation: AugmentationSection | None = None
    """Stronger augmentation of real and generated images, replacing brightness and contrast; null disables it."""
    paste: PasteSection = PasteSection()
    real_share: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of real images per batch for codes with both kinds; null: in proportion to the number of crops."""
    schedule: Literal["mixed", "pretrain"] = "mixed"
    """mixed: both kinds in every batch; pretrain: generated images first, then real ones."""
    pretrain_share: float = Field(default=0.5, gt=0, lt=1)
    """Fraction of the steps that `pretrain` spends on generated images."""
    validate_every: int = Field(default=50, ge=1, le=MAX_STEPS)
    """Steps between validations; the weights with the best validation mIoU are tested."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Validations without a new best before training stops; null trains all steps."""


class UtilityConfig(Section):
    """Study of the effect of generated data on segmentation: mIoU by code, architecture and seed."""

    # Left out of written files, which would otherwise differ from those of older versions.
    task: Literal["segment"] = Field(default="segment", exclude=True)
    """segment: segmentation of micrographs; instance: see utility-instance; classify: see utility-classify."""
    dataset: Path
    """Dataset folder of real micrographs."""
    generated: Path | None = None
    """Samples folder, or a folder with images/ and masks/; null if no code needs it. With folds, {fold} in the path
    stands for the fold, whose generator must not have seen its test micrographs."""
    generated_masks: Path | None = None
    """Folder of the masks, if `generated` has only images; may contain {fold}, too."""
    predicted: Path | None = None
    """Dataset folder that `steelgen segment train` completed with predicted masks, for codes with L: those of its
    training micrographs whose masks are predicted. May contain {fold}, too; the segmenter must not have seen test
    micrographs."""
    output_dir: Path
    """Output folder of cells/, utility.json and utility.html; a stopped study resumes."""
    codes: list[str] = Field(default=["RALLF000", "RALLFALL"], min_length=1)
    """Training sets R<n|p%|ALL>F<m|ALL>[P][L]: n micrographs of the training split and m generated pairs; P adds
    copy-paste of islands between the real micrographs, L those of `predicted`: the rivals without a generator."""
    architectures: list[Architecture] = Field(default=["unetplusplus", "segformer", "deeplabv3plus"], min_length=1)
    """unet, unet:efficientnet-lite0 (-lite1, -lite2), unetplusplus, segformer, deeplabv3plus, upernet, smp:NAME or
    smp:NAME:ENCODER."""
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(default=[0, 1, 2], min_length=1)
    """Seeds of subsets, weights and crops; cells of one seed are paired."""
    train_split: str = "train"
    """Split of the real training micrographs."""
    val_split: str | None = "val"
    """Split for selecting the best step; null uses val_share of the training split instead."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training micrographs used for validation if val_split is null or with folds."""
    test_split: str = "test"
    """Held-out split, predicted once by each network."""
    folds: Annotated[int, Field(ge=2, le=1000)] | str | None = None
    """Cross-validation: a column of metadata.jsonl, or the number of random folds. The three splits are pooled; the
    networks of each fold train on the other folds, of which val_share selects the best step. null tests test_split."""
    num_classes: int | None = Field(default=None, ge=1, le=255)
    """Number of classes; null uses that of the dataset."""
    geometry: GeometrySection = GeometrySection()
    training: UtilityTrainingSection = UtilityTrainingSection()
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """Precision of the networks; auto uses bf16 where supported and is recorded as the precision used."""
    num_bootstrap: int = Field(default=2000, ge=100, le=100000)
    """Bootstrap resamples per 95 % interval of a difference."""
    device: str = "auto"
    """Torch device; auto uses a GPU if there is one."""

    @field_validator("codes", "architectures", "seeds")
    @classmethod
    def _check_values(cls, values: list[Any], info: ValidationInfo) -> list[Any]:
        for value in values:
            if info.field_name == "codes":
                parse_code(value)
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is listed twice")
        return values

    @model_validator(mode="after")
    def _check(self) -> UtilityConfig:
        for text in self.codes:
            code = parse_code(text)
            if self.generated is None and code.needs_generated:
                raise ValueError(f"codes: {text} needs generated pairs, but generated is null")
            if self.predicted is None and code.predicted:
                raise ValueError(f"codes: {text} needs predicted masks, but predicted is null")
        for name in ("generated", "generated_masks", "predicted"):
            if self.folds is None and FOLD in str(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)} contains {FOLD}, but folds is null")
        if self.test_split in (self.train_split, self.val_split):
            raise ValueError(f"test_split: {self.test_split!r} is also the train or val_split, so nothing is held out")
        if self.val_split == self.train_split:
            raise ValueError(f"val_split: {self.val_split!r} is also the train_split; null uses a share of it")
        return self

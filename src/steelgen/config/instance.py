"""Config of `steelgen utility` with `task: instance`: instance segmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from steelgen.config.base import Section
from steelgen.config.segmenter import check_architecture
from steelgen.config.utility import UtilityConfig

MASK2FORMER = "mask2former"
"""The architecture that predicts instances itself."""


def _check_network(name: str) -> str:
    return name if name == MASK2FORMER else check_architecture(name)


class InstanceSection(Section):
    """What counts as an instance, and how predicted ones are scored."""

    background: str | None = None
    """Class that surrounds the instances and has none itself; null: the most common class of the training split."""
    maps: bool = True
    """Use the instance maps of the dataset folder where all micrographs of a split have one; false: always islands."""
    min_area: int = Field(default=4, ge=1, le=2**31)
    """Area of the smallest instance in micrograph px; smaller ones, true or predicted, count as background."""
    boundary_width: int = Field(default=1, ge=1, le=1000)
    """Width of the boundary inside an instance for the boundary IoU, micrograph px."""
    queries: int = Field(default=100, ge=1, le=1000)
    """Queries of mask2former: the most instances that it predicts in a tile."""


class InstanceConfig(UtilityConfig):
    """Study of the effect of generated pairs on instance segmentation: COCO AP by code, architecture and seed. All
    fields but task, architectures and instance are those of segmentation; folds must be null."""

    # A subclass for a place in every function of segmentation; `task` tells them apart in files.
    task: Literal["instance"]  # type: ignore[assignment]
    """instance: instance segmentation; segment, the default, and classify are the other tasks."""
    architectures: list[Annotated[str, AfterValidator(_check_network)]] = Field(
        default=[MASK2FORMER, "unet:efficientnet-lite0"], min_length=1
    )
    """mask2former, or an architecture of segmentation, whose instances are the islands of its predicted mask."""
    instance: InstanceSection = InstanceSection()

    @model_validator(mode="after")
    def _check_instances(self) -> InstanceConfig:
        if self.folds is not None:
            raise ValueError(f"folds: {self.folds!r}, but task instance has no folds; set it to null")
        return self

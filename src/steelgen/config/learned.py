"""Config sections of sampling that use a second generator: masks and labels of a joint diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, Section
from steelgen.config.solver import SolverSection

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Edge = Annotated[int, Field(ge=1, le=MAX_CROP_SIZE)]
_Offset = Annotated[int, Field(ge=0, le=MAX_CROP_SIZE)]
ImageSize = tuple[_Edge, _Edge]
"""Height and width in px."""


class LearnedMasks(Section):
    """Masks of a generator that makes masks (generator.kind joint_diffusion, with or without images)."""

    kind: Literal["learned"] = "learned"
    """Type of mask source."""
    generator: Path
    """Run folder, checkpoint, or export; its classes and scale must be those of the generator of the images."""
    phase_fraction: dict[str, _Fraction | tuple[_Fraction, _Fraction]] = {}
    """Phase fractions by class name: one value, or the lowest and the highest of a range, from which each mask takes a
    random value. Other classes are free."""
    tolerance: float = Field(0.02, gt=0, le=1)
    """Maximum deviation of a mask's phase fraction from its value; other masks are dropped and counted."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Maximum attempts per mask; the run stops with an error when they are used up."""
    size: ImageSize | None = None
    """Height and width of the masks in px; null uses image_size. Larger ones are generated from overlapping windows."""
    solver: SolverSection = SolverSection()
    """Solver of the masks; guidance is not applicable."""


class JointLabelsSection(Section):
    """Masks for images by a joint diffusion model, with the agreement of several draws as confidence maps."""

    kind: Literal["joint"]
    """Type of labeling."""
    generator: Path
    """Run folder, checkpoint, or export of kind joint_diffusion; its classes are those of the masks, and its scale must
    be that of the images."""
    draws: int = Field(4, ge=1, le=1000)
    """Masks per image. Each pixel takes its most frequent class, and their share is the confidence; 1 gives none."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Mean share over the pixels; pairs below are dropped, counted, and replaced. 0 keeps all."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Attempts at an image before the run stops with a message."""
    solver: SolverSection = SolverSection()
    """Solver of the masks; guidance is not applicable."""


class InpaintSection(Section):
    """Inpainting: a rectangle of each real image is generated, together with its mask by generators that make masks;
    the rest of both is kept."""

    size: ImageSize
    """Height and width of the rectangle, in px of the image."""
    position: tuple[_Offset, _Offset] | None = None
    """Top and left of the rectangle, in px of the image; null selects a random place in each image."""
    phase_fraction: dict[str, _Fraction] = {}
    """Phase fractions in the rectangle by class name, such as that of a defect, for joint_diffusion of pixels; other
    classes are free."""

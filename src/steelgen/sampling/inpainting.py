"""Inpainting: regions of real pairs that are generated anew, image and mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from steelgen.config.base import MAX_CROP_SIZE
from steelgen.config.learned import InpaintSection
from steelgen.data.folder import DatasetInfo
from steelgen.errors import InputError
from steelgen.files import Record
from steelgen.sampling.fractions import check_total, find_label, stack_fractions

_STREAM = 8
"""Separates the random stream from those of crops, images, and masks."""
_Offset = Annotated[int, Field(ge=0, le=MAX_CROP_SIZE)]
_Edge = Annotated[int, Field(ge=1, le=MAX_CROP_SIZE)]


class InpaintRegion(Record):
    """The region of one pair, as in metadata.jsonl."""

    box: tuple[_Offset, _Offset, _Edge, _Edge]
    """Top, left, height, and width in px."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Phase fractions in the region by class name."""


def choose_region(config: InpaintSection, seed: int, number: int, size: tuple[int, int]) -> InpaintRegion:
    """Chooses the region of pair `number`, whose image has `size` (H, W).

    Raises:
        InputError: if the region exceeds the image.
    """
    (height, width), (rows, columns) = size, config.size
    if config.position is None:
        if rows > height or columns > width:
            raise InputError(f"inpaint.size {list(config.size)}: larger than the image, {height}x{width} px")
        rng = np.random.default_rng((seed, number, _STREAM))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    else:
        top, left = config.position
    if top + rows > height or left + columns > width:
        raise InputError(
            f"inpaint: the region of {rows}x{columns} px at {top}, {left} exceeds the image, {height}x{width} px"
        )
    return InpaintRegion(box=(top, left, rows, columns), phase_fraction=config.phase_fraction)


def mark_known(regions: Sequence[InpaintRegion], size: tuple[int, int]) -> Tensor:
    """Marks the pixels outside the regions of images of `size` (H, W); (N, H, W) bool."""
    known = torch.ones(len(regions), *size, dtype=torch.bool)
    for row, region in zip(known, regions, strict=True):
        top, left, height, width = region.box
        row[top : top + height, left : left + width] = False
    return known


def collect_fractions(regions: Sequence[InpaintRegion], info: DatasetInfo) -> Tensor | None:
    """Collects the phase fractions, (N, num_classes) with NaN for free classes; None if all are free.

    Raises:
        InputError: if a class is unknown, or fractions add up to more than 1.
    """
    field, rows = "inpaint.phase_fraction", []
    for region in regions:
        rows.append({find_label(field, name, info): share for name, share in region.phase_fraction.items()})
        check_total(field, sum(rows[-1].values()))
    return stack_fractions(rows, info.num_classes)

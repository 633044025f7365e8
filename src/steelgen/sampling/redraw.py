"""Regions of real pairs that a generator draws anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from steelgen.config.base import MAX_CROP_SIZE
from steelgen.config.learned import RedrawSection
from steelgen.data.folder import DatasetInfo
from steelgen.errors import InputError
from steelgen.files import Record

_STREAM = 8
"""Separates the random stream from those of crops, images, and masks."""
_Offset = Annotated[int, Field(ge=0, le=MAX_CROP_SIZE)]
_Edge = Annotated[int, Field(ge=1, le=MAX_CROP_SIZE)]


class Redraw(Record):
    """The region of one pair, as in metadata.jsonl."""

    box: tuple[_Offset, _Offset, _Edge, _Edge]
    """Top, left, height, and width in px."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Phase fractions in the region by class name."""


def choose_region(config: RedrawSection, seed: int, number: int, size: tuple[int, int]) -> Redraw:
    """Chooses the region of pair `number`, whose image has `size` (H, W).

    Raises:
        InputError: if the region exceeds the image.
    """
    (height, width), (rows, columns) = size, config.size
    if config.position is None:
        if rows > height or columns > width:
            raise InputError(f"redraw.size {list(config.size)}: larger than the image, {height}x{width} px")
        rng = np.random.default_rng((seed, number, _STREAM))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    else:
        top, left = config.position
    if top + rows > height or left + columns > width:
        raise InputError(
            f"redraw: the region of {rows}x{columns} px at {top}, {left} exceeds the image, {height}x{width} px"
        )
    return Redraw(box=(top, left, rows, columns), phase_fraction=config.phase_fraction)


def mark_known(redraws: Sequence[Redraw], size: tuple[int, int]) -> Tensor:
    """Marks the pixels outside the regions of images of `size` (H, W); (N, H, W) bool."""
    known = torch.ones(len(redraws), *size, dtype=torch.bool)
    for row, redraw in zip(known, redraws, strict=True):
        top, left, height, width = redraw.box
        row[top : top + height, left : left + width] = False
    return known


def collect_fractions(redraws: Sequence[Redraw], info: DatasetInfo) -> Tensor | None:
    """Collects the phase fractions, (N, num_classes) with NaN for free classes; None if all are free.

    Raises:
        InputError: if a class is unknown, or fractions add up to more than 1.
    """
    fractions = torch.full((len(redraws), info.num_classes), math.nan)
    for row, redraw in zip(fractions, redraws, strict=True):
        for name, fraction in redraw.phase_fraction.items():
            if name not in info.class_names:
                raise InputError(
                    f"redraw.phase_fraction: {name!r} is not among the classes {', '.join(info.class_names)}"
                )
            row[info.class_names.index(name)] = fraction
        if (total := sum(redraw.phase_fraction.values())) > 1:
            raise InputError(f"redraw.phase_fraction: fractions add up to {total:g}, more than 1")
    return None if fractions.isnan().all() else fractions

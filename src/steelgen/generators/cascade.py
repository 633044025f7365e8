"""Several trained generators as one: the first draws coarse images, the others refine them.

Source: Ho et al. 2022, cascaded diffusion models (arXiv 2106.15282).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from steelgen.config.solver import AnySolverSection
from steelgen.data.conditions import Condition
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.data.thin import shrink_mask
from steelgen.errors import InputError
from steelgen.generators import Drawn, DrawRequest, Generator
from steelgen.generators.drawing import check_coarse_solver, conditions_of, find_factor, find_low_resolution

_SCALE_TOLERANCE = 0.01
"""Largest relative difference between the pixel sizes of an image of one stage and a coarse image of the next."""


@dataclass
class Cascade:
    """A `Generator` that runs stages one after the other; see `build_cascade`."""

    stages: tuple[Generator, ...]
    solvers: tuple[AnySolverSection, ...]
    """One per stage; used by stages that take solvers."""
    factors: tuple[int, ...]
    """Edge of the final images divided by that of each stage's images."""
    info: DatasetInfo
    """The classes of the first stage."""
    geometry: CropGeometry
    """The crops of the first stage at the scale of the last."""
    conditions: tuple[Condition, ...] = ()
    """Those of all stages, each once."""

    kind = "cascade"
    makes = frozenset({"images"})

    @property
    def takes(self) -> frozenset[str]:
        """See `Generator.takes`; solvers are those of the stages."""
        return frozenset({"conditions"} if self.conditions else ())

    @property
    def needs(self) -> frozenset[str]:
        """Those of the first stage."""
        return self.stages[0].needs

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`; names start with the number of the stage."""
        return {
            f"{number}_{name}": network
            for number, stage in enumerate(self.stages)
            for name, network in stage.networks.items()
        }

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`; masks are those of the final images.

        Raises:
            InputError: if the masks are too small for the first stage.
        """
        images: Tensor | None = None
        if request.masks is not None:
            self._check_size(request.masks)
        for number, (stage, solver, factor) in enumerate(zip(self.stages, self.solvers, self.factors, strict=True)):
            own = DrawRequest(
                [derive_seed(seed, number) for seed in request.seeds],
                _shrink_masks(request.masks, factor, stage.info) if "masks" in stage.needs else None,
                images,
                solver if "solver" in stage.takes else None,
                conditions=self._select(request.conditions, conditions_of(stage)),
            )
            images = stage.draw(own).images
            assert images is not None
        return Drawn(images)

    def _select(self, told: Tensor | None, own: Sequence[Condition]) -> Tensor | None:
        """The columns of the conditions (N, K) of all stages that one of them was trained with."""
        if told is None or not own:
            return None
        return told[:, [self.conditions.index(condition) for condition in own]]

    def _check_size(self, masks: Tensor) -> None:
        edge, factor = self.stages[0].geometry.image_size, self.factors[0]
        height, width = masks.shape[1:]
        if -(-min(height, width) // factor) < edge:
            raise InputError(
                f"the mask is {width}x{height} px, smaller than {factor} times the first stage's image_size {edge}"
            )


def build_cascade(
    generators: Sequence[Generator], solvers: Sequence[AnySolverSection], names: Sequence[Path]
) -> Cascade:
    """Joins a generator and one or more refining generators.

    Args:
        generators: the first makes images at the coarsest scale, the others refine.
        solvers: one per generator.
        names: paths for messages.

    Raises:
        InputError: if the generators do not fit each other; the message names the first that does not fit.
    """
    first = generators[0]
    if "images" in first.needs:
        raise InputError(f"stages: {names[0]} needs coarse images, so it cannot be the first stage")
    if "images" not in first.makes:
        raise InputError(f"stages: {names[0]} makes no images")
    for number, (generator, solver, name) in enumerate(zip(generators, solvers, names, strict=True)):
        if number:
            _check_pair(generators[number - 1], generator, names[number - 1], name)
            _check_classes(first, generator, names[0], name)
        check_coarse_solver(generator, solver, f"stages.{number}.solver")
    factors = tuple(math.prod(map(find_factor, generators[number + 1 :])) for number in range(len(generators)))
    geometry = replace(first.geometry, image_size=first.geometry.image_size * factors[0])
    return Cascade(
        tuple(generators), tuple(solvers), factors, first.info, geometry, _join_conditions(generators, names)
    )


def derive_seed(seed: int, stage: int) -> int:
    """Derives the seed of a stage from that of an image; the first stage has the image's own."""
    return seed if stage == 0 else int(np.random.default_rng((seed, stage, 6)).integers(2**62))


def _check_pair(before: Generator, after: Generator, before_name: Path, after_name: Path) -> None:
    low_resolution = find_low_resolution(after)
    if low_resolution is None:
        raise InputError(
            f"stages: {after_name} does not refine images, so it can only be the first stage; train it with "
            "generator.low_resolution"
        )
    coarse, fine = before.geometry, after.geometry
    if coarse.in_channels != fine.in_channels:
        raise InputError(
            f"stages: {before_name} has in_channels {coarse.in_channels}, {after_name} has {fine.in_channels}"
        )
    # Micrograph pixels per pixel of the coarse images: as drawn, and as refined in training.
    drawn, refined = coarse.crop_size / coarse.image_size, low_resolution.factor * fine.crop_size / fine.image_size
    if abs(drawn / refined - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"stages: {before_name} draws pixels of {drawn:.4g} px of the micrograph, but {after_name}, of factor "
            f"{low_resolution.factor}, refines pixels of {refined:.4g} px"
        )


def _check_classes(first: Generator, other: Generator, first_name: Path, other_name: Path) -> None:
    """Raises InputError if a stage has other classes than the first; stages without masks fit all."""
    ours, theirs = first.info.class_names, other.info.class_names
    if ours and theirs and ours != theirs:
        raise InputError(
            f"stages: {first_name} has the classes {', '.join(ours)}, {other_name} has {', '.join(theirs)}"
        )


def _join_conditions(generators: Sequence[Generator], names: Sequence[Path]) -> tuple[Condition, ...]:
    """The conditions of all stages, each once; raises InputError if one was scaled differently in two stages."""
    found: dict[str, tuple[Condition, Path]] = {}
    for generator, name in zip(generators, names, strict=True):
        for condition in conditions_of(generator):
            known, first_name = found.setdefault(condition.name, (condition, name))
            if known != condition:
                raise InputError(
                    f"stages: {first_name} and {name} were trained with other values of {condition.name!r}; train both "
                    "on the same micrographs"
                )
    return tuple(condition for condition, _ in found.values())


def _shrink_masks(masks: Tensor | None, factor: int, info: DatasetInfo) -> Tensor | None:
    """Shrinks masks (N, H, W) int64 so that thin classes survive; see `shrink_mask`."""
    if masks is None or factor == 1:
        return masks
    shrunken = [shrink_mask(mask.numpy().astype(np.uint8), factor, info.ignore_index) for mask in masks.cpu()]
    return torch.from_numpy(np.stack(shrunken).astype(np.int64))

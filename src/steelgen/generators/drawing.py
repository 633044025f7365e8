"""Sampling from a generator of any kind: requests with the fields that it needs or takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from steelgen.config.generator import LowResolutionSection
from steelgen.config.solver import REFINING_FIELDS, AnySolverSection, SolverSection
from steelgen.data.conditions import Condition
from steelgen.diffusion.refinement import shrink
from steelgen.errors import InputError
from steelgen.generators import Drawn, DrawRequest, Generator


def draw(generator: Generator, request: DrawRequest) -> Drawn:
    """Samples with the masks, images and solver of a request if the generator uses them.

    Masks in which every pixel is ignored count as none. Images of the size of the masks are shrunk for a refining
    generator.
    """
    accepted, factor, images = generator.needs | generator.takes, find_factor(generator), request.images
    inpaints = request.known is not None and "known" in accepted
    if factor > 1 and images is not None and request.masks is not None and images.shape[2:] == request.masks.shape[1:]:
        images = shrink(images, factor)
    return generator.draw(
        replace(
            request,
            masks=request.masks if "masks" in accepted else None,
            images=images if "images" in accepted or inpaints else None,
            known=request.known if inpaints else None,
            solver=request.solver if "solver" in accepted else None,
        )
    )


def draw_for_masks(
    generator: Generator, masks: Tensor, seeds: Sequence[int], solver: AnySolverSection | None = None, **fields: Any
) -> Tensor:
    """Generates images (N, C, H, W) in [-1, 1] for masks (N, H, W); N images without masks if it uses none.

    Args:
        fields: further fields of `DrawRequest`.
    """
    drawn = draw(generator, DrawRequest(seeds, masks, solver=solver, **fields))
    assert drawn.images is not None, f"{generator.kind} makes no images"
    return drawn.images


def draw_example(generator: Generator, request: DrawRequest) -> Drawn:
    """Generates what training shows and measures: new pairs if the generator makes masks, else images for the request.

    Args:
        request: masks of real crops, with their images and conditions for generators that use them.
    """
    if "masks" in generator.makes:
        request = DrawRequest(request.seeds, solver=request.solver)
    return draw(generator, request)


def uses_images(generator: Generator) -> bool:
    """Whether a generator needs or takes images."""
    return "images" in generator.needs | generator.takes


def conditions_of(generator: Generator) -> tuple[Condition, ...]:
    """Returns the conditions that a generator was trained with; empty for kinds without conditions."""
    return getattr(generator, "conditions", ())


def find_low_resolution(generator: Generator) -> LowResolutionSection | None:
    """Returns the section of a refining generator, which needs coarse images; None for all others."""
    return getattr(generator, "low_resolution", None)


def find_factor(generator: Generator) -> int:
    """Returns the edge of a generator's images divided by that of the images it is given; 1 unless it refines."""
    low_resolution = find_low_resolution(generator)
    return low_resolution.factor if low_resolution else 1


def check_coarse_solver(generator: Generator, solver: AnySolverSection, name: str = "solver") -> None:
    """Raises InputError if the options of refining generators in a solver section do not fit a generator.

    Args:
        name: of the section.
    """
    low_resolution, default = find_low_resolution(generator), SolverSection()
    for field in REFINING_FIELDS:
        if low_resolution is None and getattr(solver, field) != getattr(default, field):
            raise InputError(f"{name}.{field}: only applicable to refining generators (generator.low_resolution)")
    if low_resolution and solver.coarse_noise > low_resolution.max_noise:
        raise InputError(
            f"{name}.coarse_noise {solver.coarse_noise:g}: the refining generator was trained with at most "
            f"{low_resolution.max_noise:g} (generator.low_resolution.max_noise)"
        )

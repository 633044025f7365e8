"""Sampling from a generator of any kind: requests with the fields that it needs or takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from steelgen.config.generator import LowResolutionSection
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.data.conditions import Condition
from steelgen.diffusion.refinement import shrink
from steelgen.errors import InputError
from steelgen.generators import Drawn, DrawRequest, Generator, Latents, StartImages


def draw_for_masks(
    generator: Generator,
    masks: Tensor,
    seeds: Sequence[int],
    solver: AnySolverSection | None = None,
    start: StartImages | None = None,
    noise: Tensor | None = None,
    latents: Latents | None = None,
    truncation: float | None = None,
    images: Tensor | None = None,
    conditions: Tensor | None = None,
) -> Tensor:
    """Generates images (N, C, H, W) in [-1, 1] for masks (N, H, W); N images without masks if it uses none.

    Args:
        images: see `DrawRequest.images`; not used by generators that `uses_images` is false for. Images of the size of
            the masks are shrunk for a refining generator.
        conditions: see `DrawRequest`.
    """
    drawn = draw_pairs(
        generator, masks, seeds, solver, start, noise, latents, truncation, images, conditions=conditions
    )
    assert drawn.images is not None, f"{generator.kind} makes no images"
    return drawn.images


def draw_pairs(
    generator: Generator,
    masks: Tensor,
    seeds: Sequence[int],
    solver: AnySolverSection | None = None,
    start: StartImages | None = None,
    noise: Tensor | None = None,
    latents: Latents | None = None,
    truncation: float | None = None,
    images: Tensor | None = None,
    known: Tensor | None = None,
    fractions: Tensor | None = None,
    conditions: Tensor | None = None,
) -> Drawn:
    """Generates what a generator makes; see `draw_for_masks`. Masks in which every pixel is ignored count as none.

    Args:
        known, fractions, conditions: see `DrawRequest`; only for generators that take them.
    """
    given = masks if "masks" in generator.needs | generator.takes else None
    steps = solver if "solver" in generator.takes else None
    shown = images if uses_images(generator) else None
    low_resolution = find_low_resolution(generator)
    if low_resolution and shown is not None and shown.shape[2:] == masks.shape[1:]:
        shown = shrink(shown, low_resolution.factor)
    request = DrawRequest(seeds, given, shown, steps, start, noise, latents, truncation, fractions, known)
    return generator.draw(replace(request, conditions=conditions))


def draw_example(
    generator: Generator,
    masks: Tensor,
    seeds: Sequence[int],
    solver: AnySolverSection | None,
    images: Tensor,
    conditions: Tensor | None = None,
) -> Drawn:
    """Generates what training shows and measures: pairs if the generator makes masks, else images for `masks`.

    Args:
        images: (N, C, H, W) real images of the masks, for generators that need images.
        conditions: (N, K) of the masks' micrographs, for generators that take them.
    """
    if "masks" not in generator.makes:
        return draw_pairs(generator, masks, seeds, solver, images=images, conditions=conditions)
    return generator.draw(DrawRequest(seeds, solver=solver if "solver" in generator.takes else None))


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
    for field in ("coarse_noise", "consistency"):
        if low_resolution is None and getattr(solver, field) != getattr(default, field):
            raise InputError(f"{name}.{field}: only applicable to refining generators (generator.low_resolution)")
    if low_resolution and solver.coarse_noise > low_resolution.max_noise:
        raise InputError(
            f"{name}.coarse_noise {solver.coarse_noise:g}: the refining generator was trained with at most "
            f"{low_resolution.max_noise:g} (generator.low_resolution.max_noise)"
        )

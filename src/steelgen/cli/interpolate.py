"""`steelgen interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.options import ConfigOption, SetOption
from steelgen.cli.output import errors_as_lines, progress_bar
from steelgen.errors import InputError


def interpolate_command(
    config: ConfigOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".png for a strip, or a grid of more points; .gif for an animation.")
    ],
    seeds: Annotated[str | None, typer.Option(help="Seeds to walk through; by default 0,1.")] = None,
    frames: Annotated[int, typer.Option(help="Images from a point to the next, both included.")] = 8,
    mask: Annotated[int, typer.Option(min=0, help="Number of the mask in the config's mask source.")] = 0,
    space: Annotated[
        str | None, typer.Option(help="Latent space of adversarial generators: z (turn) or w (straight on).")
    ] = None,
    first: Annotated[
        Path | None, typer.Option("--from", help="Walk from the middle of this real micrograph, projected to w, …")
    ] = None,
    last: Annotated[Path | None, typer.Option("--to", help="… to that of this one.")] = None,
    projection_steps: Annotated[int, typer.Option(min=1, help="Steps of the projection.")] = 300,
    overrides: SetOption = None,
) -> None:
    """Draw what lies between two seeds or real micrographs, as strip, grid or animation; takes a sample config."""
    from steelgen.config.base import load_config
    from steelgen.config.sample import SampleConfig

    with errors_as_lines():
        try:
            points = [int(seed) for seed in (seeds or "0,1").split(",")]
        except ValueError:
            raise InputError(f"--seeds {seeds}: must be two or more whole numbers with commas between them") from None
        if (first is None) != (last is None):
            raise InputError("--from and --to need each other")
        if first and seeds:
            raise InputError(f"--seeds {seeds}: not applicable with --from and --to")
        settings = load_config(config, SampleConfig, overrides or ())
        from steelgen.sampling.interpolate import Walk, interpolate

        images = (first, last) if first and last else ()
        walk = Walk(points, frames, space, images, projection_steps)
        with progress_bar("frames") as report:
            errors = interpolate(settings, walk, mask, out, report)
        for path, error in zip(images, errors, strict=True):
            typer.echo(f"{path}: projected with an error of {error:.1f} gray levels of 255")
        typer.echo(f"{frames * max(1, len(points) - 1)} frames in {out}")

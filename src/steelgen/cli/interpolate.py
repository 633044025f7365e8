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
    out: Annotated[Path, typer.Option("--out", "-o", help=".png for a strip, .gif for an animation.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the first and the last frame.")] = "0,1",
    frames: Annotated[int, typer.Option(help="Images, both ends included.")] = 8,
    mask: Annotated[int, typer.Option(min=0, help="Number of the mask in the config's mask source.")] = 0,
    overrides: SetOption = None,
) -> None:
    """Draw one mask from one seed to another, as a strip or an animation; takes a sample config."""
    from steelgen.config.base import load_config
    from steelgen.config.sample import SampleConfig

    with errors_as_lines():
        try:
            first, last = (int(seed) for seed in seeds.split(","))
        except ValueError:
            raise InputError(f"--seeds {seeds}: must be two whole numbers with a comma between them") from None
        settings = load_config(config, SampleConfig, overrides or ())
        from steelgen.sampling.interpolate import interpolate

        with progress_bar("frames") as report:
            interpolate(settings, (first, last), frames, mask, out, report)
        typer.echo(f"{frames} frames in {out}")

"""`steelgen ema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.output import errors_as_lines


def ema_command(
    run: Annotated[Path, typer.Argument(help="The folder of a run trained with train.ema_power_stds.")],
    std: Annotated[float, typer.Option(help="Length of the average, as a share of the run: σ_rel, 0.03 to 0.25.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The generator folder to write.")],
    step: Annotated[int | None, typer.Option(help="Average up to this step; by default the last snapshot's.")] = None,
) -> None:
    """Put together a generator whose weights are averaged over any length of its training."""
    with errors_as_lines():
        from steelgen.training.post_hoc_ema import export_average

        found, error = export_average(run, std, step, out)
        typer.echo(f"{out}: weights averaged up to step {found} with std {std:g}, the profile met within {error:.1%}")

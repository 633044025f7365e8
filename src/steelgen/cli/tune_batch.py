"""`steelgen tune-batch`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import ConfigOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json, print_table


def tune_batch_command(
    config: ConfigOption,
    overrides: SetOption = None,
    memory_gib: Annotated[
        float | None, typer.Option(help="Take no more than this; by default nine tenths of what is free.", min=0.01)
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write the config with the batch that was found.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the largest batch that fits into memory here; accumulation keeps the crops an optimizer step."""
    with errors_as_lines():
        from steelgen.config.base import config_to_json
        from steelgen.files import save_json
        from steelgen.training.batch_size import BatchTrial, tune_batch

        silent = quiet or as_json
        settings = load_settings(config, "train", overrides or ())

        def report(trial: BatchTrial) -> None:
            if not silent:
                outcome = "fits" if trial.memory_gib is not None else "does not fit"
                typer.echo(f"batch {trial.batch_size}: {outcome}", err=True)

        plan = tune_batch(settings, memory_gib, report)
        rows = [
            [
                trial.batch_size,
                "–" if trial.memory_gib is None else round(trial.memory_gib, 2),
                "–" if trial.images_per_second is None else round(trial.images_per_second, 2),
            ]
            for trial in sorted(plan.trials, key=lambda trial: trial.batch_size)
        ]
        if as_json:
            print_json(asdict(plan))
        if not silent:
            print_table(f"batches within {plan.limit_gib:.2f} GiB", ["batch", "memory, GiB", "images/s"], rows)
        found = {
            "train_batch_size": plan.train_batch_size,
            "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        }
        if not silent:
            typer.echo(" ".join(f"--set train.{name}={value}" for name, value in found.items()))
        if write:
            settings.train = settings.train.model_copy(update=found)
            save_json(write, config_to_json(settings))
            if not silent:
                typer.echo(f"wrote {write}")

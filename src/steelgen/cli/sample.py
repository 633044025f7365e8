"""`steelgen sample`."""

from __future__ import annotations

import json

import typer

from steelgen.cli.options import ConfigOption, DryRunOption, SetOption
from steelgen.cli.output import errors_as_lines, progress_bar


def sample_command(config: ConfigOption, overrides: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Draw labelled synthetic micrographs with a trained generator."""
    from steelgen.config.base import config_to_json, load_config
    from steelgen.config.sample import SampleConfig

    with errors_as_lines():
        settings = load_config(config, SampleConfig, overrides or ())
        typer.echo(json.dumps(config_to_json(settings), indent=2))
        if dry_run:
            from steelgen.generators import load_generator

            generator = load_generator(settings.generator)
            parameters = sum(parameter.numel() for parameter in generator.network.parameters())
            names = ", ".join(generator.info.class_names)
            typer.echo(f"{parameters:,} parameters, {generator.geometry.image_size} px, classes: {names}")
            return
        from steelgen.sampling.run import sample

        with progress_bar("sampling") as report:
            folder = sample(settings, report)
        typer.echo(f"{settings.num_samples} labelled images in {folder}; look at {folder / 'contact_sheet.png'}")

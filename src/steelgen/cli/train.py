"""`steelgen train` and `steelgen finetune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import AllowChangedOption, ConfigOption, DryRunOption, SetOption
from steelgen.cli.output import errors_as_lines, fail, print_table
from steelgen.cli.watching import is_main_process, run_training

if TYPE_CHECKING:
    from steelgen.config.train import RunConfig
    from steelgen.data.crops import Micrographs
    from steelgen.generators import Generator


class Resume(str, Enum):
    """Whether to go on from a checkpoint in the run folder."""

    auto = "auto"
    never = "never"


ResumeOption = Annotated[
    Resume,
    typer.Option(help="auto: go on from the run folder's newest checkpoint, if any. never: the folder must be new."),
]


def train_command(
    config: ConfigOption,
    overrides: SetOption = None,
    resume: ResumeOption = Resume.never,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Learn a generator from annotated micrographs."""
    with errors_as_lines():
        _run(load_settings(config, "train", overrides or ()), resume, dry_run, allow_changed or ())


def finetune_command(
    config: ConfigOption,
    overrides: SetOption = None,
    resume: ResumeOption = Resume.never,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Continue training a generator, usually with more mask_dropout, on the same or new data."""
    with errors_as_lines():
        _run(load_settings(config, "finetune", overrides or ()), resume, dry_run, allow_changed or ())


def _run(settings: RunConfig, resume: Resume, dry_run: bool, allow_changed: Sequence[str]) -> None:
    """Trains or fine-tunes by the kind of the config: one of ISDM's for training may go on from a checkpoint."""
    from steelgen.training.setup import prepare

    if allow_changed and resume is Resume.never:
        fail("--allow-changed means something with --resume auto alone: a new run has nothing to differ from")
    if dry_run:
        _print_plan(settings, *prepare(settings))
        return
    _print_config(settings)
    result = run_training(settings, resume is Resume.auto, allow_changed)
    if not is_main_process():
        return
    if result.export:
        typer.echo(f"finished at step {result.global_step} ({result.stopped_by}); generator in {result.export}")
    else:
        typer.echo(
            f"stopped by {result.stopped_by} at step {result.global_step}, checkpoint saved in {settings.run_dir}; "
            "go on with --resume auto"
        )


def _print_config(settings: RunConfig) -> None:
    from steelgen.config.base import config_to_json

    if is_main_process():
        typer.echo(json.dumps(config_to_json(settings), indent=2))


def _print_plan(settings: RunConfig, generator: Generator, micrographs: Micrographs) -> None:
    import numpy as np

    from steelgen.data.crops import CropDataset
    from steelgen.training.setup import count_steps

    _print_config(settings)
    epoch = len(CropDataset(micrographs, generator.geometry, settings.seed, settings.data.augment))
    parameters = sum(parameter.numel() for network in generator.networks.values() for parameter in network.parameters())
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in micrographs.masks], axis=0)
    labelled = counts[: micrographs.info.num_classes]
    sizes = sorted({f"{mask.shape[1]}x{mask.shape[0]}" for mask in micrographs.masks})
    geometry = generator.geometry
    rows: list[list[Any]] = [
        ["parameters", f"{parameters:,}"],
        ["micrographs", f"{len(micrographs)} ({', '.join(sizes[:3])}{' …' if len(sizes) > 3 else ''} px)"],
        ["crops", f"{geometry.crop_size} px → {geometry.image_size} px, {epoch} an epoch"],
        ["optimizer steps", f"{count_steps(settings.train, epoch):,}"],
    ]
    for name, share in zip(micrographs.info.class_names, labelled / max(labelled.sum(), 1), strict=True):
        rows.append([f"class {name}", f"{share:.1%}"])
    print_table("dry run", ["what", "value"], rows)

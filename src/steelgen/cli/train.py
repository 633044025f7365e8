"""`steelgen train` and `steelgen finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import AllowChangedOption, ConfigOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, fail, print_json, print_table
from steelgen.cli.progress import is_main_process, run_training

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
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn a generator from annotated micrographs."""
    with errors_as_lines():
        settings = load_settings(config, "train", overrides or ())
        _run(settings, resume, dry_run, allow_changed or (), quiet, as_json)


def finetune_command(
    config: ConfigOption,
    overrides: SetOption = None,
    resume: ResumeOption = Resume.never,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue training a generator, usually with more mask_dropout, on the same or new data."""
    with errors_as_lines():
        settings = load_settings(config, "finetune", overrides or ())
        _run(settings, resume, dry_run, allow_changed or (), quiet, as_json)


def _run(
    settings: RunConfig, resume: Resume, dry_run: bool, allow_changed: Sequence[str], quiet: bool, as_json: bool
) -> None:
    """Trains or fine-tunes by the kind of the config: one of ISDM's for training may go on from a checkpoint."""
    from steelgen.config.base import config_to_json
    from steelgen.training.setup import prepare

    if allow_changed and resume is Resume.never:
        fail("--allow-changed means something with --resume auto alone: a new run has nothing to differ from")
    silent = quiet or as_json or not is_main_process()
    plan = _plan(settings, *prepare(settings)) if dry_run else None
    if not silent:
        print_json(config_to_json(settings))
    if plan is not None:
        if as_json:
            print_json({"config": config_to_json(settings), "plan": dict(plan)})
        elif not silent:
            print_table("dry run", ["what", "value"], plan)
        return
    result = run_training(settings, resume is Resume.auto, allow_changed, silent)
    if as_json and is_main_process():
        export = str(result.export) if result.export else None
        print_json({**asdict(result), "export": export, "run_dir": str(settings.run_dir)})
    if silent:
        return
    if result.export:
        typer.echo(f"finished at step {result.global_step} ({result.stopped_by}); generator in {result.export}")
    else:
        typer.echo(
            f"stopped by {result.stopped_by} at step {result.global_step}, checkpoint saved in {settings.run_dir}; "
            "go on with --resume auto"
        )


def _plan(settings: RunConfig, generator: Generator, micrographs: Micrographs) -> list[list[str]]:
    """What would be trained: rows of name and value."""
    import numpy as np

    from steelgen.data.crops import CropDataset
    from steelgen.training.setup import count_steps

    epoch = len(CropDataset(micrographs, generator.geometry, settings.seed, settings.data.augment))
    parameters = sum(parameter.numel() for network in generator.networks.values() for parameter in network.parameters())
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in micrographs.masks], axis=0)
    labeled = counts[: micrographs.info.num_classes]
    sizes = sorted({f"{mask.shape[1]}x{mask.shape[0]}" for mask in micrographs.masks})
    geometry = generator.geometry
    rows = [
        ["parameters", f"{parameters:,}"],
        ["micrographs", f"{len(micrographs)} ({', '.join(sizes[:3])}{' …' if len(sizes) > 3 else ''} px)"],
        ["crops", f"{geometry.crop_size} px → {geometry.image_size} px, {epoch} an epoch"],
        ["optimizer steps", f"{count_steps(settings.train, epoch):,}"],
    ]
    for name, share in zip(micrographs.info.class_names, labeled / max(labeled.sum(), 1), strict=True):
        rows.append([f"class {name}", f"{share:.1%}"])
    return rows

"""`steelgen train`, `finetune`, `tune-batch` and `ema`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import AllowChangedOption, ConfigOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, fail, log, print_config, print_json, print_table
from steelgen.cli.progress import is_main_process, run_training

if TYPE_CHECKING:
    from steelgen.config.train import RunConfig
    from steelgen.data.crops import Micrographs
    from steelgen.generators import Generator
    from steelgen.training.batch_size import BatchTrial

ResumeOption = Annotated[
    Literal["auto", "never"],
    Option(help="auto: resume from the latest checkpoint, if any. never: require a new run folder."),
]


def _build_command(action: Literal["train", "finetune"], summary: str) -> Callable[..., None]:
    @errors_as_lines()
    def command(
        config: ConfigOption,
        overrides: SetOption = None,
        resume: ResumeOption = "never",
        allow_changed: AllowChangedOption = None,
        dry_run: DryRunOption = False,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        from steelgen.config.base import config_to_json
        from steelgen.training.setup import prepare

        settings = load_settings(config, action, overrides)
        if allow_changed and resume == "never":
            fail("--allow-changed: requires --resume auto")
        silent = quiet or as_json or not is_main_process()
        plan = _plan(settings, *prepare(settings)) if dry_run else None
        print_config(settings, silent)
        if plan is not None:
            if as_json:
                print_json({"config": config_to_json(settings), "plan": dict(plan)})
            elif not silent:
                print_table("dry run", ["what", "value"], plan)
            return
        result = run_training(settings, resume == "auto", allow_changed or (), silent)
        if as_json and is_main_process():
            export = str(result.export) if result.export else None
            print_json({**asdict(result), "export": export, "run_dir": str(settings.run_dir)})
        if silent:
            return
        if result.export:
            typer.echo(f"finished at step {result.global_step} ({result.stopped_by}); generator in {result.export}")
        else:
            typer.echo(
                f"stopped by {result.stopped_by} at step {result.global_step}; checkpoint saved in {settings.run_dir}; "
                "resume with --resume auto"
            )

    command.__doc__ = summary
    return command


train_command = _build_command("train", "Train a generator on annotated micrographs.")
finetune_command = _build_command(
    "finetune", "Fine-tune a trained generator on the same or new data, also with other classes."
)


@errors_as_lines()
def tune_batch_command(
    config: ConfigOption,
    overrides: SetOption = None,
    memory_gib: Annotated[
        float | None, Option(help="Memory limit in GiB. Default: 90 % of the free memory.", min=0.01)
    ] = None,
    write: Annotated[Path | None, Option(help="File for the config with the best batch size.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the largest batch size that fits into memory.

    Gradient accumulation keeps the number of crops per optimizer step constant.
    """
    from steelgen.config.base import config_to_json
    from steelgen.files import save_json
    from steelgen.training.batch_size import tune_batch

    silent = quiet or as_json
    settings = load_settings(config, "train", overrides)

    def report(trial: BatchTrial) -> None:
        if not silent:
            log(f"batch {trial.batch_size}: {'fits' if trial.memory_gib is not None else 'does not fit'}")

    plan = tune_batch(settings, memory_gib, report)
    best = {
        "train_batch_size": plan.train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
    }
    if as_json:
        print_json(asdict(plan))
    if not silent:
        trials = sorted(plan.trials, key=lambda trial: trial.batch_size)
        rows = [[trial.batch_size, _round(trial.memory_gib), _round(trial.images_per_second)] for trial in trials]
        print_table(f"batch sizes within {plan.limit_gib:.2f} GiB", ["batch", "memory, GiB", "images/s"], rows)
        typer.echo(" ".join(f"--set train.{name}={value}" for name, value in best.items()))
    if write:
        settings.train = settings.train.model_copy(update=best)
        save_json(write, config_to_json(settings))
        if not silent:
            typer.echo(f"wrote {write}")


@errors_as_lines()
def ema_command(
    run: Annotated[Path, Argument(help="Run folder of a training with train.ema_power_stds.")],
    std: Annotated[float, Option(help="EMA length relative to the training length: σ_rel, 0.03 to 0.25.")],
    out: Annotated[Path, Option("--out", "-o", help="Generator folder to write.")],
    step: Annotated[int | None, Option(help="Last step of the average. Default: the last snapshot.")] = None,
) -> None:
    """Build a generator with a post-hoc EMA of any length."""
    from steelgen.training.post_hoc_ema import export_average

    last_step, error = export_average(run, std, step, out)
    typer.echo(f"{out}: weights averaged up to step {last_step} with std {std:g}; EMA profile error {error:.1%}")


def _round(value: float | None) -> float | str:
    return "–" if value is None else round(value, 2)


def _plan(settings: RunConfig, generator: Generator, micrographs: Micrographs) -> list[list[str]]:
    """Describes the training as rows of name and value."""
    import numpy as np

    from steelgen.data.crops import CropDataset
    from steelgen.training.setup import count_steps

    geometry = generator.geometry
    epoch = len(CropDataset(micrographs, geometry, settings.seed, settings.data.augment))
    parameters = sum(parameter.numel() for network in generator.networks.values() for parameter in network.parameters())
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in micrographs.masks], axis=0)
    labeled = counts[: micrographs.info.num_classes]
    sizes = sorted({f"{mask.shape[1]}x{mask.shape[0]}" for mask in micrographs.masks})
    rows = [
        ["parameters", f"{parameters:,}"],
        ["micrographs", f"{len(micrographs)} ({', '.join(sizes[:3])}{' …' if len(sizes) > 3 else ''} px)"],
        ["crops", f"{geometry.crop_size} px → {geometry.image_size} px, {epoch} per epoch"],
        ["optimizer steps", f"{count_steps(settings.train, epoch):,}"],
    ]
    for name, share in zip(micrographs.info.class_names, labeled / max(labeled.sum(), 1), strict=True):
        rows.append([f"class {name}", f"{share:.1%}"])
    return rows

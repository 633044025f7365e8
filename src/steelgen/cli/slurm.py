"""`steelgen slurm render`, `submit` and `status`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from steelgen.cli.isdm import load_settings, load_utility_settings
from steelgen.cli.options import ConfigOption, JsonOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json, print_table
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.cluster.scripts import Job
    from steelgen.config.base import Section

Action = Literal["segment", "train", "finetune", "sample", "evaluate", "utility"]
ActionArgument = Annotated[Action, Argument(help="Command that the job runs.")]
ProfileOption = Annotated[
    str | None,
    Option(
        help="Site profile: a file, or the name of one in ~/.config/steelgen/slurm. Default: "
        "$STEELGEN_SLURM_PROFILE, else the profile named default."
    ),
]
NodesOption = Annotated[int | None, Option(help="Nodes of a training job.")]
GpusOption = Annotated[
    int | None, Option(help="GPUs per node, one process each; 0 runs one process per node without GPU.")
]
TimeOption = Annotated[str | None, Option(help="Time limit, e.g. 04:00:00 or 2-00:00:00.")]
PartitionOption = Annotated[str | None, Option(help="Slurm partition.")]
AccountOption = Annotated[str | None, Option(help="Account to charge.")]
ArrayOption = Annotated[
    str | None,
    Option(metavar="N[%LIMIT]", help="sample and utility: a job array of N shards, at most LIMIT at once."),
]
EvaluateOption = Annotated[Path | None, Option(help="sample: config of an evaluation that follows in the gather job.")]
slurm_app = typer.Typer(no_args_is_help=True)


@slurm_app.command("render")
@errors_as_lines()
def render_command(
    action: ActionArgument,
    config: ConfigOption,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    nodes: NodesOption = None,
    gpus_per_node: GpusOption = None,
    time: TimeOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    array: ArrayOption = None,
    evaluate: EvaluateOption = None,
    out: Annotated[Path | None, Option(help="Folder for the script and a gather script. Default: print it.")] = None,
) -> None:
    """Print the batch script of a command, or write it to a folder; submits nothing."""
    from steelgen.cluster.scripts import render_script
    from steelgen.cluster.submission import load_profile, write_job

    site = load_profile(
        profile, nodes=nodes, gpus_per_node=gpus_per_node, time=time, partition=partition, account=account
    )
    jobs = _build_jobs(action, _load(action, config, overrides), config, tuple(overrides or ()), array, evaluate)
    if out is None:
        typer.echo(render_script(jobs[0], site, Path.cwd()), nl=False)
    else:
        for job in jobs:
            typer.echo(write_job(job, site, out))


@slurm_app.command("submit")
@errors_as_lines()
def submit_command(
    action: ActionArgument,
    config: ConfigOption,
    overrides: SetOption = None,
    profile: ProfileOption = None,
    nodes: NodesOption = None,
    gpus_per_node: GpusOption = None,
    time: TimeOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    array: ArrayOption = None,
    evaluate: EvaluateOption = None,
) -> None:
    """Write the batch script beside the output folder and submit it.

    Sampling and utility studies become a job array and a job that gathers its shards when all have succeeded.
    """
    from steelgen.cluster.submission import freeze_config, load_profile, submit_job
    from steelgen.config.actions import find_output
    from steelgen.config.base import load_config
    from steelgen.config.evaluate import EvaluateConfig
    from steelgen.config.train import FinetuneConfig

    site = load_profile(
        profile, nodes=nodes, gpus_per_node=gpus_per_node, time=time, partition=partition, account=account
    )
    settings = _load(action, config, overrides)
    evaluation = load_config(evaluate, EvaluateConfig) if evaluate else None
    # An ISDM config that resumes from a checkpoint becomes a fine-tuning.
    kind: Action = "finetune" if isinstance(settings, FinetuneConfig) else action
    output = find_output(settings)
    frozen = freeze_config(kind, settings, output)
    frozen_evaluation = freeze_config("evaluate", evaluation, output) if evaluation else None
    after = None
    for job in _build_jobs(kind, settings, frozen, (), array, frozen_evaluation):
        after = submit_job(job, site, after)
        typer.echo(f"{job.action}: job {after} → {job.output}")


@slurm_app.command("status")
@errors_as_lines()
def status_command(
    run: Annotated[Path, Argument(help="Folder of a training run, samples or a utility study.")],
    shards: Annotated[int | None, Option(min=1, max=100_000, help="Number of shards. Default: as submitted.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of a run from its files: steps, or complete and missing shards."""
    from steelgen.cluster.scripts import ARRAYS
    from steelgen.cluster.status import run_status
    from steelgen.cluster.submission import queue_state, submitted_jobs

    parts, jobs = run_status(run, shards), submitted_jobs(run)
    if as_json:
        print_json({"parts": [asdict(part) for part in parts], "jobs": jobs})
        return
    rows = [[part.name, part.done, "–" if part.wanted is None else part.wanted, part.state] for part in parts]
    print_table(str(run), ["part", "done", "of", "state"], rows)
    for action, job in jobs.items():
        typer.echo(f"{action}: job {job['job_id']}, {queue_state(job['job_id']) or 'not in the queue'}")
    incomplete = [part.name for part in parts if part.name.startswith("shard") and part.state != "complete"]
    array = next((jobs[action] for action in ARRAYS if action in jobs), None)
    if incomplete and array and not queue_state(array["job_id"]):
        numbers = ",".join(name.split()[1].split("/")[0] for name in incomplete)
        typer.echo(f"to run the incomplete shards again: sbatch --array={numbers} {array['script']}")


def _load(action: Action, config: Path, overrides: list[str] | None) -> Section:
    from steelgen.config.base import load_config
    from steelgen.config.evaluate import EvaluateConfig
    from steelgen.config.segment import SegmentConfig

    if action == "evaluate":
        return load_config(config, EvaluateConfig, overrides or ())
    if action == "segment":
        return load_config(config, SegmentConfig, overrides or ())
    if action == "utility":
        return load_utility_settings(config, overrides)
    return load_settings(config, action, overrides)


def _build_jobs(
    action: Action,
    settings: Section,
    config: Path,
    overrides: tuple[str, ...],
    array: str | None,
    evaluate: Path | None,
) -> list[Job]:
    """Builds the jobs of a command: one, or an array and the job that gathers it."""
    from steelgen.cluster.scripts import ARRAYS, Job, parse_array
    from steelgen.config.actions import find_output
    from steelgen.config.studies import StudyConfig
    from steelgen.evaluation.utility.cells import list_cells

    output = find_output(settings)
    if evaluate and action != "sample":
        raise InputError(f"--evaluate {evaluate}: applies only to sample")
    if action not in ARRAYS:
        if array is not None:
            raise InputError(f"--array {array}: applies only to {' and '.join(ARRAYS)}")
        return [Job(action, config, output, overrides)]
    shards, limit = parse_array(array or "1")
    if isinstance(settings, StudyConfig):
        total, unit = len(list_cells(settings)), "cells"
    else:
        total, unit = settings.num_samples, "images"  # type: ignore[attr-defined]
    if shards > total:
        raise InputError(f"--array {array}: more shards than the {total} {unit}")
    return [
        Job(action, config, output, overrides, shards, limit),
        Job("gather", config, output, overrides, gathers=action, evaluate_config=evaluate),
    ]

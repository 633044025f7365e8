"""`steelgen slurm render`, `submit` and `status`."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import ConfigOption, JsonOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json, print_table
from steelgen.cli.utility import load_utility_settings

if TYPE_CHECKING:
    from steelgen.cluster.scripts import Job
    from steelgen.config.base import Section

slurm_app = typer.Typer(no_args_is_help=True)


class Action(str, Enum):
    """What a batch job runs."""

    train = "train"
    finetune = "finetune"
    sample = "sample"
    evaluate = "evaluate"
    utility = "utility"


ActionArgument = Annotated[Action, typer.Argument(help="The command that the job runs.")]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        help="Site profile: a file, or the name of one in ~/.config/steelgen/slurm. Default: "
        "$STEELGEN_SLURM_PROFILE, else the profile named default."
    ),
]
NodesOption = Annotated[int | None, typer.Option(help="Nodes of a training job.")]
GpusOption = Annotated[int | None, typer.Option(help="GPUs of a node, one process each; 0: none, one process a node.")]
TimeOption = Annotated[str | None, typer.Option(help="Time limit, e.g. 04:00:00 or 2-00:00:00.")]
PartitionOption = Annotated[str | None, typer.Option(help="Slurm's partition.")]
AccountOption = Annotated[str | None, typer.Option(help="The account that is charged.")]
ArrayOption = Annotated[
    str | None,
    typer.Option(metavar="N[%LIMIT]", help="sample and utility: a job array of N shards, LIMIT at once."),
]
EvaluateOption = Annotated[
    Path | None, typer.Option(help="With sample: config by which the gathering job evaluates the images.")
]


@slurm_app.command("render")
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
    out: Annotated[
        Path | None, typer.Option(help="Write the script (and a sampling array's gather script) into this folder.")
    ] = None,
) -> None:
    """Print the batch script of a command, or write it into a folder; nothing is submitted."""
    from steelgen.cluster.scripts import render_script
    from steelgen.cluster.submission import load_profile, write_job

    with errors_as_lines():
        site = load_profile(
            profile, nodes=nodes, gpus_per_node=gpus_per_node, time=time, partition=partition, account=account
        )
        settings = _load(action, config, overrides)
        jobs = _build_jobs(action, settings, config, tuple(overrides or ()), array, evaluate)
        if out is None:
            typer.echo(render_script(jobs[0], site, Path.cwd()), nl=False)
        else:
            for job in jobs:
                typer.echo(write_job(job, site, out))


@slurm_app.command("submit")
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
    """Write the batch script beside the output folder and hand it to sbatch.

    Sampling and utility studies are submitted as a job array and a job that gathers its shards when all ended well.
    """
    from steelgen.cluster.submission import freeze_config, load_profile, submit_job
    from steelgen.config.actions import find_output
    from steelgen.config.base import load_config
    from steelgen.config.evaluate import EvaluateConfig
    from steelgen.config.train import FinetuneConfig

    with errors_as_lines():
        site = load_profile(
            profile, nodes=nodes, gpus_per_node=gpus_per_node, time=time, partition=partition, account=account
        )
        settings = _load(action, config, overrides)
        judge = load_config(evaluate, EvaluateConfig) if evaluate else None
        # An ISDM config that goes on from a checkpoint is a fine-tuning, whatever it was handed to.
        kind = Action.finetune if isinstance(settings, FinetuneConfig) else action
        output = find_output(settings)
        frozen = freeze_config(kind.value, settings, output)
        frozen_judge = freeze_config("evaluate", judge, output) if judge else None
        after = None
        for job in _build_jobs(kind, settings, frozen, (), array, frozen_judge):
            after = submit_job(job, site, after)
            typer.echo(f"{job.action}: job {after} → {job.output}")


@slurm_app.command("status")
def status_command(
    run: Annotated[Path, typer.Argument(help="The folder of a training run, of sampled images or of a utility study.")],
    shards: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Number of shards, if not by steelgen.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a run is from its own files: steps, or shards done and missing."""
    from steelgen.cluster.scripts import ARRAYS
    from steelgen.cluster.status import run_status
    from steelgen.cluster.submission import queue_state, submitted_jobs

    with errors_as_lines():
        parts = run_status(run, shards)
        if as_json:
            print_json({"parts": [asdict(part) for part in parts], "jobs": submitted_jobs(run)})
            return
        rows = [[part.name, part.done, "–" if part.wanted is None else part.wanted, part.state] for part in parts]
        print_table(str(run), ["part", "done", "of", "state"], rows)
        jobs = submitted_jobs(run)
        for action, job in jobs.items():
            typer.echo(f"{action}: job {job['job_id']}, {queue_state(job['job_id']) or 'not in the queue'}")
        missing = [part.name.split()[1].split("/")[0] for part in parts if _is_open_shard(part.name, part.state)]
        array = next((jobs[action] for action in ARRAYS if action in jobs), None)
        if missing and array and not queue_state(array["job_id"]):
            typer.echo(f"what is missing again: sbatch --array={','.join(missing)} {array['script']}")


def _is_open_shard(name: str, state: str) -> bool:
    return name.startswith("shard") and state != "complete"


def _load(action: Action, config: Path, overrides: list[str] | None) -> Section:
    from steelgen.config.base import load_config
    from steelgen.config.evaluate import EvaluateConfig

    if action is Action.evaluate:
        return load_config(config, EvaluateConfig, overrides or ())
    if action is Action.utility:
        return load_utility_settings(config, overrides)
    return load_settings(config, action.value, overrides or ())


def _build_jobs(
    action: Action,
    settings: Section,
    config: Path,
    overrides: tuple[str, ...],
    array: str | None,
    evaluate: Path | None,
) -> list[Job]:
    """The jobs of one command: one, or an array and the job that gathers it."""
    from steelgen.cluster.scripts import ARRAYS, Job, parse_array
    from steelgen.config.actions import find_output
    from steelgen.config.utility import UtilityConfig
    from steelgen.errors import InputError
    from steelgen.evaluation.utility.cells import list_cells

    output = find_output(settings)
    if evaluate and action is not Action.sample:
        raise InputError(f"--evaluate {evaluate}: only sample takes it")
    if action.value not in ARRAYS:
        if array is not None:
            raise InputError(f"--array {array}: only {' and '.join(ARRAYS)} take it")
        return [Job(action.value, config, output, overrides)]
    shards, limit = parse_array(array or "1")
    if isinstance(settings, UtilityConfig):
        total, kind = len(list_cells(settings)), "cells"
    else:
        total, kind = settings.num_samples, "images"  # type: ignore[attr-defined]
    if shards > total:
        raise InputError(f"--array {array}: more shards than {kind}")
    return [
        Job(action.value, config, output, overrides, shards, limit),
        Job("gather", config, output, overrides, gathers=action.value, evaluate_config=evaluate),
    ]

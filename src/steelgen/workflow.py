"""The workflow: train → finetune → sample → evaluate → utility, here or as a chain of Slurm jobs, on the same files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelgen.changes import list_changes, refresh_config
from steelgen.cluster.scripts import Job
from steelgen.cluster.status import finished_indices
from steelgen.cluster.submission import check_not_queued, freeze_config, submit_job
from steelgen.config.actions import find_output
from steelgen.config.base import Section, config_to_json
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.config.workflow import WorkflowConfig
from steelgen.devices import pick_device, resolve_precision
from steelgen.errors import InputError
from steelgen.evaluation.results import load_evaluation
from steelgen.evaluation.utility.cells import list_cells
from steelgen.evaluation.utility.results import RESULT_FILE as UTILITY_FILE
from steelgen.evaluation.utility.results import STUDY_FILE, load_study_result
from steelgen.runs import RESULT_FILE, load_result, load_settings
from steelgen.sampling.formats import load_sampling

# Training goes on from its checkpoint when only these have changed.
_LENGTHS = ("max_steps", "max_epochs", "max_minutes")


@dataclass(frozen=True)
class Stage:
    """One stage, and whether there is anything left to do for it."""

    action: str
    config: Section
    output: Path
    complete: bool
    """Its output is all there, by the same config, and newer than what it was made from."""


def plan_workflow(config: WorkflowConfig) -> list[Stage]:
    """The stages in order, each compared with what its output folder holds.

    Raises:
        InputError: if an output folder holds something else: the output of another config, or of an older generator.
    """
    stages: list[Stage] = []
    for action in ("train", "finetune", "sample", "evaluate", "utility"):
        settings = getattr(config, action)
        if settings is None:
            continue
        output = find_output(settings)
        end, done = _END_FILES[action], _is_complete(settings, output)
        for before in stages:
            if before.action != "evaluate":  # of which no other stage makes anything
                _check_not_stale(output, _BEGIN_FILES[action], before)
        stages.append(Stage(action, settings, output, done and (output / end).is_file()))
    return stages


def run_workflow(config: WorkflowConfig, run_stage: Callable[[Stage], None], report: Callable[[str], None]) -> None:
    """Runs what is left to do, one stage after another, on this machine.

    Args:
        run_stage: carries out one stage; the command line calls the function behind the stage's own command.
        report: told a line a stage.

    Raises:
        InputError: also if a stage was stopped before its end, so that the next one cannot begin.
    """
    for stage in plan_workflow(config):
        if stage.complete:
            report(f"{stage.action}: complete in {stage.output}, skipped")
            continue
        report(f"{stage.action}: → {stage.output}")
        run_stage(stage)
        if not _is_complete(stage.config, stage.output):
            raise InputError(f"{stage.output}: {stage.action} was stopped before its end; the same command goes on")


def submit_workflow(config: WorkflowConfig, profile: SlurmProfile, report: Callable[[str], None]) -> list[str]:
    """Submits what is left to do as jobs, each waiting until the one before has ended well.

    Sampling is a job array; the job that gathers its shards evaluates as well.

    Returns:
        The ids of the jobs, in order.
    """
    stages = {stage.action: stage for stage in plan_workflow(config)}
    open_stages = {action: stage for action, stage in stages.items() if not stage.complete}
    for stage in stages.values():
        if stage.complete:
            report(f"{stage.action}: complete in {stage.output}, skipped")
        else:
            check_not_queued(stage.output, stage.action)
    frozen = {action: freeze_config(action, stage.config, stage.output) for action, stage in open_stages.items()}
    ids: list[str] = []

    def submit(job: Job) -> None:
        ids.append(submit_job(job, profile, after=ids[-1] if ids else None))
        report(f"{job.action}: job {ids[-1]} → {job.output}")

    for action in ("train", "finetune"):
        if action in open_stages:
            submit(Job(action, frozen[action], open_stages[action].output))
    if "sample" in open_stages:
        output = open_stages["sample"].output
        submit(Job("sample", frozen["sample"], output, shards=config.shards))
        submit(Job("gather", frozen["sample"], output, evaluate_config=frozen.get("evaluate")))
    elif "evaluate" in open_stages:
        submit(Job("evaluate", frozen["evaluate"], open_stages["evaluate"].output))
    if "utility" in open_stages:
        assert config.utility is not None
        output, shards = open_stages["utility"].output, min(config.shards, len(list_cells(config.utility)))
        submit(Job("utility", frozen["utility"], output, shards=shards))
        submit(Job("gather", frozen["utility"], output, gathers="utility"))
    return ids


_BEGIN_FILES = {
    "train": "config.json",
    "finetune": "config.json",
    "sample": "sampling.json",
    "evaluate": "evaluation.json",
    "utility": STUDY_FILE,
}
_END_FILES = {
    "train": RESULT_FILE,
    "finetune": RESULT_FILE,
    "sample": "metadata.jsonl",
    "evaluate": "evaluation.json",
    "utility": UTILITY_FILE,
}


def _is_complete(config: Section, output: Path) -> bool:
    """Whether an output folder holds all that a config asks for.

    Raises:
        InputError: if it holds the output of another config.
    """
    if isinstance(config, TrainConfig | FinetuneConfig):
        if not (output / "config.json").is_file():
            return False
        written = refresh_config(load_settings(output).model_dump(), type(config))
        _check_same(output, _without_lengths(written), _without_lengths(config_to_json(config)))
        unchanged = written == config_to_json(config)
        return unchanged and (output / RESULT_FILE).is_file() and load_result(output).finished
    if isinstance(config, SampleConfig):
        if not (output / "sampling.json").is_file() or not (output / "metadata.jsonl").is_file():
            return False
        with open(output / "metadata.jsonl", "rb") as file:
            rows = sum(1 for _ in file)
        # What else may differ between two calls on one folder is for `sample` to say: it names the key.
        written = refresh_config(load_sampling(output).config.model_dump(), type(config))
        if config.mixed_precision == "auto":  # is written down as what the machine took
            written["mixed_precision"] = "auto"
        return (
            rows == config.num_samples
            and finished_indices(output).issuperset(range(config.num_samples))
            and written == config_to_json(config)
        )
    if isinstance(config, UtilityConfig):
        if not (output / UTILITY_FILE).is_file():
            return False
        # What else may differ between two calls on one folder is for `utility` to say: cells may be added.
        written = refresh_config(load_study_result(output)["config"], type(config))
        wanted = config_to_json(config)
        precision = resolve_precision(config.mixed_precision, pick_device(config.device))
        return written == {**wanted, "mixed_precision": precision}
    assert isinstance(config, EvaluateConfig)
    if not (output / "evaluation.json").is_file():
        return False
    written = refresh_config(load_evaluation(output)["config"], type(config))
    _check_same(output, written, config_to_json(config))
    return True


def _without_lengths(values: dict[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in values["train"].items() if key not in _LENGTHS}
    return {**values, "train": train}


def _check_same(output: Path, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    if change := next(list_changes(written, wanted), None):
        raise InputError(f"{output}: holds the output of another config ({change}); name another folder or remove it")


def _check_not_stale(output: Path, begin: str, before: Stage) -> None:
    """Raises InputError if an output was begun before the stage it follows had ended, so from something else."""
    if not (output / begin).is_file():
        return
    end = before.output / _END_FILES[before.action]
    if not before.complete or (output / begin).stat().st_mtime < end.stat().st_mtime:
        raise InputError(
            f"{output}: was made before {before.action} in {before.output} was complete; "
            "remove it or name another folder"
        )

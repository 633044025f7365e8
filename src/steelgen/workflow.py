"""The workflow: segment → train → finetune → refine → sample → evaluate → utility.

It runs locally, or as a chain of Slurm jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from steelgen.config.segment import SegmentConfig
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import FinetuneConfig, RunConfig
from steelgen.config.utility import UtilityConfig
from steelgen.config.workflow import WorkflowConfig
from steelgen.data.unlabeled import list_unlabeled
from steelgen.devices import pick_device, resolve_precision
from steelgen.errors import InputError
from steelgen.evaluation.labeled_folders import list_predicted
from steelgen.evaluation.labeler import SEGMENTER_FILE, load_segment_config
from steelgen.evaluation.results import load_evaluation
from steelgen.evaluation.segment import COMPLETED, SCORES_FILE
from steelgen.evaluation.utility.cells import list_cells
from steelgen.evaluation.utility.results import RESULT_FILE as UTILITY_FILE
from steelgen.evaluation.utility.results import STUDY_FILE, load_study_result
from steelgen.fold_workflow import list_settings, write_fold_datasets
from steelgen.runs import RESULT_FILE, load_result, load_settings
from steelgen.sampling.formats import load_sampling
from steelgen.turns import REFINING_SHARE, SharedTime

_FILES = {
    "segment": (SEGMENTER_FILE, SCORES_FILE),
    "train": ("config.json", RESULT_FILE),
    "finetune": ("config.json", RESULT_FILE),
    "refine": ("config.json", RESULT_FILE),
    "sample": ("sampling.json", "metadata.jsonl"),
    "evaluate": ("evaluation.json", "evaluation.json"),
    "utility": (STUDY_FILE, UTILITY_FILE),
}
"""The first and the last file that a stage writes into its output folder."""
_LENGTHS = ("max_steps", "max_epochs", "max_minutes")
"""Training resumes from its checkpoint if only these fields have changed."""


@dataclass(frozen=True)
class Stage:
    """One stage of a workflow."""

    action: str
    config: Section
    output: Path
    complete: bool
    """The output is complete, has the same config, and is newer than its inputs."""
    fold: str | None = None
    """The fold of the utility study that the stage belongs to."""

    @property
    def name(self) -> str:
        """Action, with the fold if there is one."""
        return self.action if self.fold is None else f"{self.action} of fold {self.fold}"


def plan_workflow(config: WorkflowConfig) -> list[Stage]:
    """Lists the stages in order and compares each with its output folder.

    Raises:
        InputError: if an output folder belongs to another config or was made before an earlier stage was complete, or
            `refine` fine-tunes a generator that does not refine.
    """
    stages: list[Stage] = []
    shared = _share_time(config)
    for action, settings, fold in list_settings(config, _FILES):
        output = find_output(settings)
        first, last = _FILES[action]
        if action == "refine" and isinstance(settings, FinetuneConfig):
            _check_refining(settings)
        if shared and isinstance(settings, RunConfig) and action in config.sharing:
            _check_run(settings, output)
            complete = shared.complete
        else:
            complete = _is_complete(settings, output) and (output / last).is_file()
        for before in stages:
            # No stage reads the output of evaluate, refine only that of segment, and only the study reads all folds.
            reads = before.action == "segment" if action == "refine" else before.action != "evaluate"
            if reads and (fold is None or before.fold in (None, fold)):
                _check_not_stale(output / first, before)
        stages.append(Stage(action, settings, output, complete, fold))
    return stages


def run_workflow(config: WorkflowConfig, run_stage: Callable[[Stage], None], report: Callable[[str], None]) -> None:
    """Runs the incomplete stages one after another on this machine.

    Args:
        run_stage: runs one stage; the command line calls the function behind the stage's command.
        report: receives one line per stage.

    Raises:
        InputError: see `plan_workflow`; also if a stage was stopped before its end.
    """
    stages, shared = plan_workflow(config), _share_time(config)
    sharing = {stage.action: stage for stage in stages if stage.action in config.sharing}
    for path in write_fold_datasets(config):
        report(f"dataset of a fold: → {path}")
    for stage in stages:
        if stage.complete:
            report(f"{stage.name}: complete in {stage.output}, skipped")
            continue
        report(f"{stage.name}: → {stage.output}")
        if shared and stage.action in sharing:
            if stage.action == next(iter(sharing)):
                shared.train(lambda action, limited: run_stage(replace(sharing[action], config=limited)), report)
            continue
        run_stage(stage)
        if not _is_complete(stage.config, stage.output):
            raise InputError(f"{stage.output}: {stage.action} was stopped early; run the same command again to resume")


def divide_minutes(config: WorkflowConfig) -> WorkflowConfig:
    """Divides training_minutes by rule: `REFINING_SHARE` of it for refine, the rest for the stage before."""
    assert config.training_minutes is not None
    changed: dict[str, Any] = {"training_minutes": None}
    for name, section in config.sharing.items():
        share = REFINING_SHARE if name == "refine" else 1 - REFINING_SHARE
        limited = section.train.model_copy(update={"max_minutes": share * config.training_minutes})
        changed[name] = section.model_copy(update={"train": limited})
    return config.model_copy(update=changed)


def submit_workflow(config: WorkflowConfig, profile: SlurmProfile, report: Callable[[str], None]) -> list[str]:
    """Submits the incomplete stages as Slurm jobs, each of which waits until the one before has succeeded.

    Sampling is a job array; the job that gathers its shards also evaluates. Jobs take no turns: see `divide_minutes`.

    Returns:
        The job ids, in order.

    Raises:
        InputError: see `plan_workflow`.
    """
    if config.training_minutes:
        names, config = list(config.sharing), divide_minutes(config)
        minutes = [f"{name} gets {getattr(config, name).train.max_minutes:g} minutes" for name in names]
        report(f"training_minutes: jobs take no turns; by rule, {' and '.join(minutes)}")
    pending: dict[tuple[str, str | None], Stage] = {}
    for stage in plan_workflow(config):
        if stage.complete:
            report(f"{stage.name}: complete in {stage.output}, skipped")
        else:
            check_not_queued(stage.output, _name_command(stage.action, stage.config))
            pending[stage.action, stage.fold] = stage
    for path in write_fold_datasets(config):
        report(f"dataset of a fold: → {path}")
    frozen = {
        key: freeze_config(_name_command(stage.action, stage.config), stage.config, stage.output)
        for key, stage in pending.items()
    }
    ids: list[str] = []

    def submit(stage: Stage, action: str, **options: Any) -> None:
        command = _name_command(action, stage.config)
        job = Job(command, frozen[stage.action, stage.fold], stage.output, **options)
        ids.append(submit_job(job, profile, after=ids[-1] if ids else None))
        report(f"{job.action}: job {ids[-1]} → {job.output}")

    for (action, fold), stage in pending.items():
        if action in ("segment", "train", "finetune", "refine") or (
            action == "evaluate" and ("sample", fold) not in pending
        ):
            submit(stage, action)
        elif action == "sample":
            submit(stage, action, shards=config.shards)
            submit(stage, "gather", gathers=action, evaluate_config=frozen.get(("evaluate", fold)))
        elif action == "utility":
            assert config.utility is not None
            submit(stage, action, shards=min(config.shards, len(list_cells(config.utility))))
            submit(stage, "gather", gathers=action)
    return ids


def _name_command(action: str, config: Section) -> str:
    """The command of a stage; refine trains or fine-tunes."""
    if action != "refine":
        return action
    return "finetune" if isinstance(config, FinetuneConfig) else "train"


def _check_refining(config: FinetuneConfig) -> None:
    """Raises InputError if the generator that `refine` fine-tunes is not a refining one."""
    from steelgen.generators.saved import is_refining

    if not is_refining(config.checkpoint):
        raise InputError(
            f"refine.checkpoint {config.checkpoint}: does not refine images; use one trained with "
            "generator.low_resolution"
        )


def _is_complete(config: Section, output: Path) -> bool:
    """Returns whether an output folder is complete for a config.

    Raises:
        InputError: if a training run or an evaluation in it has another config.
    """
    wanted = config_to_json(config)
    if isinstance(config, RunConfig):
        same = _check_run(config, output) == wanted
        return same and (output / RESULT_FILE).is_file() and load_result(output).finished
    if isinstance(config, SampleConfig):
        if not (output / "sampling.json").is_file() or not (output / "metadata.jsonl").is_file():
            return False
        with open(output / "metadata.jsonl", "rb") as file:
            rows = sum(1 for _ in file)
        # `sample` itself refuses other changes, and names the key.
        written = refresh_config(load_sampling(output).config.model_dump(exclude_unset=True), type(config))
        if config.mixed_precision == "auto":  # recorded as the precision that the machine resolved it to
            written["mixed_precision"] = "auto"
        indices = range(config.num_samples)
        return rows == len(indices) and finished_indices(output).issuperset(indices) and written == wanted
    if isinstance(config, SegmentConfig):
        if not (output / SEGMENTER_FILE).is_file():
            return False
        written = config_to_json(load_segment_config(output))
        if config.segmenter.enlargement is None:  # recorded as chosen for the micrographs
            written["segmenter"]["enlargement"] = None
        _check_same(output, written, wanted)
        _check_unlabeled(config, output)
        return True
    if isinstance(config, UtilityConfig):
        if not (output / UTILITY_FILE).is_file():
            return False
        # `utility` itself refuses other changes; cells may be added.
        written = refresh_config(load_study_result(output)["config"], type(config))
        precision = resolve_precision(config.mixed_precision, pick_device(config.device))
        return written == {**wanted, "mixed_precision": precision}
    assert isinstance(config, EvaluateConfig)
    if not (output / "evaluation.json").is_file():
        return False
    _check_same(output, refresh_config(load_evaluation(output)["config"], type(config)), wanted)
    return True


def _check_unlabeled(config: SegmentConfig, output: Path) -> None:
    """Raises InputError if the folder of unlabeled micrographs has others than those that were labeled."""
    assert config.unlabeled is not None, "workflows need it"
    if other := list_predicted(output / COMPLETED) ^ {
        path.stem for path in list_unlabeled(config.dataset, config.unlabeled)
    }:
        raise InputError(
            f"{output}: was made of other unlabeled micrographs than those in {config.unlabeled} (by {min(other)}); "
            "choose another or remove it"
        )


def _check_run(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Returns the config of the run in an output folder, None without; InputError if more than the length differs."""
    if not (output / "config.json").is_file():
        return None
    written = refresh_config(load_settings(output).model_dump(), type(config))
    _check_same(output, _without_lengths(written), _without_lengths(config_to_json(config)))
    return written


def _share_time(config: WorkflowConfig) -> SharedTime | None:
    return SharedTime(config.sharing, config.training_minutes) if config.training_minutes else None


def _without_lengths(values: dict[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in values["train"].items() if key not in _LENGTHS}
    return {**values, "train": train}


def _check_same(output: Path, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    if change := next(list_changes(written, wanted), None):
        raise InputError(f"{output}: contains the output of another config ({change}); choose another or remove it")


def _check_not_stale(first: Path, before: Stage) -> None:
    """Raises InputError if the first file of an output is older than the completion of an earlier stage."""
    if not first.is_file():
        return
    end = before.output / _FILES[before.action][1]
    if not before.complete or first.stat().st_mtime < end.stat().st_mtime:
        raise InputError(
            f"{first.parent}: was made before {before.action} in {before.output} was complete; remove it or choose "
            "another folder"
        )

"""The run folder: lock, resolved config, digests of its inputs, environment and metrics."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, RootModel

from steelgen import __version__
from steelgen.changes import (
    Change,
    is_among,
    list_changes,
    list_known_changes,
    note_changes,
    refresh_config,
    refuse_changes,
)
from steelgen.config.base import config_to_json
from steelgen.config.train import RunConfig
from steelgen.errors import InputError
from steelgen.files import Record, load_json, load_record, load_text, new_file, parse_json, parse_record, save_json
from steelgen.locks import LOCK_FILE, FolderLock
from steelgen.trackers import open_trackers

RESULT_FILE = "result.json"
"""In a run folder after training: global_step, stopped_by, finished."""
OUT_OF_TIME = "max_minutes"
"""stopped_by in result.json if the time was up."""
TRANSFER_FILE = "transfer.json"
"""What fine-tuning kept of its checkpoint, if the data differs, and what it froze."""
INPUTS_FILE = "inputs.json"
"""In a run folder: digests of the data and the initial checkpoint, crops per optimizer step."""
BATCH_FIELD = "train.train_batch_size"
"""Key in inputs.json of the crops per optimizer step, over all processes and micro-steps."""
FREE_FIELDS = (
    "run_dir",
    "data.num_workers",
    # When training stops.
    "train.max_epochs",
    "train.max_minutes",
    "selection.patience_steps",
    "selection.stop_at_copies",
    # How the same numbers are computed, up to rounding.
    "train.gradient_checkpointing",
    "train.tf32",
    "train.channels_last",
    "train.compile",
    # What is written, and when.
    "train.log_every",
    "train.trackers",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.ema_snapshots_every",
    "preview",
)
"""Fields and sections that may change when a run resumes, since no weight depends on them."""

_PACKAGES = ("torch", "diffusers", "accelerate", "numpy", "pillow", "scikit-image", "scipy", "pydantic")
_OPTIONAL_PACKAGES = ("monai", "peft", "transformers", "segmentation-models-pytorch", "wandb")


def describe_environment() -> dict[str, Any]:
    """Describes versions and machine, for reproduction elsewhere."""
    import torch

    optional = [name for name in _OPTIONAL_PACKAGES if any(metadata.Distribution.discover(name=name))]
    return {
        "steelgen": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in (*_PACKAGES, *optional)},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


class RunFolder:
    """Context manager of a run folder: locked against other processes from `open` to the end of the block.

    Args:
        config: the config of the run.
        resume: resume from the checkpoints in the folder, if any.
        allow_changed: fields and sections that may differ from the earlier attempt.
    """

    def __init__(self, config: RunConfig, resume: bool, allow_changed: Sequence[str] = ()) -> None:
        self.resume = resume
        self.lock = FolderLock(config.run_dir)
        self._config, self._allow_changed = config, allow_changed

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def open(self, inputs: Mapping[str, Any], report: Callable[[str], None]) -> None:
        """Locks the folder, writes config.json, environment.json and inputs.json, and removes an old result.json.

        Args:
            inputs: by dotted config field, the digest or number to compare instead of its value.
            report: receives a line when another process is waited for.

        Raises:
            InputError: if the folder is in use, or has checkpoints and a field that affects training has changed.
        """
        run_dir = self._config.run_dir
        self._check_usable()
        run_dir.mkdir(parents=True, exist_ok=True)
        self.lock.take(report)
        self._check_usable()  # another process may have trained in between
        settings, changes = config_to_json(self._config), []
        written = run_dir / "config.json"
        if self.resume and written.is_file() and any((run_dir / "checkpoints").glob("step-*")):
            known = load_json(run_dir / INPUTS_FILE) if (run_dir / INPUTS_FILE).is_file() else {}
            before = refresh_config(load_json(written), type(self._config))
            changes = list(find_decisive_changes(before, known, settings, inputs))
            refuse_changes(run_dir, changes, self._allow_changed)
        note_changes(run_dir, changes)
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
        save_json(run_dir / "config.json", settings)
        save_json(run_dir / INPUTS_FILE, dict(inputs))
        save_json(run_dir / "environment.json", describe_environment())

    def _check_usable(self) -> None:
        """Hidden files do not count: a process killed at its start may have left them."""
        run_dir = self._config.run_dir
        present = {path.name for path in run_dir.iterdir()} - {LOCK_FILE} if run_dir.is_dir() else set()
        if not self.resume and (present or (run_dir.exists() and not run_dir.is_dir())):
            raise InputError(f"{run_dir}: the output folder is already in use; choose another or remove it")
        if self.resume and any(name[0] != "." for name in present) and "config.json" not in present:
            raise InputError(f"{run_dir}: not a run folder (no config.json); cannot resume")


def find_decisive_changes(
    before: dict[str, Any], inputs_before: Mapping[str, Any], now: dict[str, Any], inputs_now: Mapping[str, Any]
) -> Iterator[Change]:
    """Yields the changes between two attempts, each a config and its inputs, that affect the weights."""
    compared = inputs_before.keys() & inputs_now.keys()
    yield from list_known_changes(inputs_before, inputs_now)
    free = [*FREE_FIELDS, *compared]
    if BATCH_FIELD in compared:
        free.append("train.gradient_accumulation_steps")
    if now.get("train", {}).get("lr_scheduler") == "constant_with_warmup":
        free.append("train.max_steps")  # other schedules decay until max_steps
    for change in list_changes(before, now):
        if not is_among(change.field, free):
            yield change


def save_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Writes result.json, from which batch scripts and the workflow see whether training has finished."""
    save_json(run_dir / RESULT_FILE, result)


class RunResult(Record):
    """result.json."""

    global_step: int = Field(ge=0)
    stopped_by: str
    finished: bool


class _Length(Record):
    max_steps: int | None


class RunSettings(Record):
    """The length of training in the config.json of a run."""

    train: _Length


def load_settings(run_dir: Path) -> RunSettings:
    """Reads the config.json of a run, also of an older steelgen; raises InputError if it is missing or damaged."""
    return load_record(run_dir / "config.json", RunSettings)


def load_result(run_dir: Path) -> RunResult:
    """Reads the result.json of a run; raises InputError if it is missing or damaged."""
    return load_record(run_dir / RESULT_FILE, RunResult)


class MetricsLog:
    """metrics.jsonl and the trackers of a run; drops lines of an earlier attempt after `resume_step`.

    Args:
        run_dir: the run folder.
        resume_step: the step that training resumes after.
        trackers: see `open_trackers`.
    """

    def __init__(self, run_dir: Path, resume_step: int, trackers: Sequence[str]) -> None:
        self.path = run_dir / "metrics.jsonl"
        if self.path.is_file():
            kept = [line + "\n" for line, values in read_metrics(self.path) if values["step"] <= resume_step]
            with new_file(self.path) as working:
                working.write_text("".join(kept), encoding="utf-8")
        self._trackers = open_trackers(trackers, run_dir, resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl and a point per scalar to the trackers."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Flushes the trackers."""
        for tracker in self._trackers:
            tracker.close()


class _Values(RootModel[dict[str, float]]):
    """A line of metrics.jsonl."""


def read_metrics(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the lines of a metrics.jsonl with their parsed values, which include `step`; skips truncated lines.

    Raises:
        InputError: if the file is missing or not text.
    """
    for number, line in enumerate(load_text(path).splitlines(), start=1):
        try:
            # The gradient norm is infinite in steps that the fp16 loss scaler skips.
            values = parse_record(parse_json(line, str(path), number, finite=False), _Values, str(path)).root
        except InputError:
            continue
        if "step" in values:
            yield line, values

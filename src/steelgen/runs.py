"""The run folder: lock, resolved config, what it was begun with, environment, metrics."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
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
"""In a run folder once training has ended: global_step, stopped_by, finished."""

INPUTS_FILE = "inputs.json"
"""In a run folder: digests of the data and of the checkpoint that it was begun with, crops of an optimizer step."""
BATCH_FIELD = "train.train_batch_size"
"""Stands in inputs.json for the crops that an optimizer step takes in, however they are shared out."""
FREE_FIELDS = (
    "run_dir",
    "data.num_workers",
    # When to stop.
    "train.max_epochs",
    "train.max_minutes",
    "selection.patience_steps",
    "selection.stop_at_copies",
    # How the same numbers are computed, but for rounding.
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
"""Fields and sections of a config that a run may go on with changed: no weight depends on them."""

_PACKAGES = ("torch", "diffusers", "accelerate", "numpy", "pillow", "scikit-image", "scipy", "pydantic")
_OPTIONAL_PACKAGES = ("monai", "transformers", "segmentation-models-pytorch", "wandb")


def describe_environment() -> dict[str, Any]:
    """Versions and machine: what one needs to know to run again elsewhere."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "steelgen": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in (*_PACKAGES, *_find_optional())},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "command": sys.argv,
    }


def _find_optional() -> list[str]:
    return [name for name in _OPTIONAL_PACKAGES if any(metadata.Distribution.discover(name=name))]


class RunFolder:
    """A run's folder, which from `open` to the end of the block no other process trains in.

    Args:
        config: of the run.
        resume: go on with what the folder holds.
        allow_changed: fields and sections that may decide otherwise than at the beginning.
    """

    def __init__(self, config: RunConfig, resume: bool, allow_changed: Sequence[str] = ()) -> None:
        self.resume = resume
        self.lock = FolderLock(config.run_dir)
        self._config, self._allow_changed = config, allow_changed

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lock.release()

    def open(self, inputs: Mapping[str, Any], report: Callable[[str], None]) -> None:
        """Writes config.json, environment.json and inputs.json, takes an earlier attempt's result.json away.

        Args:
            inputs: by dotted field of the config, the digest or number that decides in its place.
            report: told where another process was waited for.

        Raises:
            InputError: if the folder is in use, or goes on from a checkpoint and something that decides has changed.
        """
        run_dir = self._config.run_dir
        self._check_usable()
        run_dir.mkdir(parents=True, exist_ok=True)
        self.lock.take(report)
        self._check_usable()  # another one may have come and gone
        settings, changes = config_to_json(self._config), []
        written = run_dir / "config.json"
        if self.resume and written.is_file() and any((run_dir / "checkpoints").glob("step-*")):
            known = load_json(run_dir / INPUTS_FILE) if (run_dir / INPUTS_FILE).is_file() else {}
            begun = refresh_config(load_json(written), type(self._config))
            changes = list(find_decisive_changes(begun, known, settings, inputs))
            refuse_changes(run_dir, changes, self._allow_changed)
        note_changes(run_dir, changes)
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
        save_json(run_dir / "config.json", settings)
        save_json(run_dir / INPUTS_FILE, dict(inputs))
        save_json(run_dir / "environment.json", describe_environment())

    def _check_usable(self) -> None:
        """Hidden files do not count: a start that was killed at once may have left them."""
        run_dir = self._config.run_dir
        present = {path.name for path in run_dir.iterdir()} - {LOCK_FILE} if run_dir.is_dir() else set()
        if not self.resume and (present or (run_dir.exists() and not run_dir.is_dir())):
            raise InputError(f"{run_dir}: the output folder is already in use; name another or remove it")
        if self.resume and any(name[0] != "." for name in present) and "config.json" not in present:
            raise InputError(f"{run_dir}: not a run folder (no config.json), cannot resume from it")


def find_decisive_changes(
    before: dict[str, Any], inputs_before: Mapping[str, Any], now: dict[str, Any], inputs_now: Mapping[str, Any]
) -> Iterator[Change]:
    """What decides how training goes on and differs between two attempts at a run, each a config and its inputs."""
    compared = inputs_before.keys() & inputs_now.keys()
    yield from list_known_changes(inputs_before, inputs_now)
    free = [*FREE_FIELDS, *compared]
    if BATCH_FIELD in compared:
        free.append("train.gradient_accumulation_steps")
    if now.get("train", {}).get("lr_scheduler") == "constant_with_warmup":
        free.append("train.max_steps")  # others decay to it
    for change in list_changes(before, now):
        if not is_among(change.field, free):
            yield change


def save_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Writes how a run ended; a batch script and the workflow read from it whether training is to go on."""
    save_json(run_dir / RESULT_FILE, result)


class RunResult(Record):
    """result.json."""

    global_step: int = Field(ge=0)
    stopped_by: str
    finished: bool


class _Length(Record):
    max_steps: int | None


class RunSettings(Record):
    """config.json of a training run, as far as it says how long that is to be."""

    train: _Length


def load_settings(run_dir: Path) -> RunSettings:
    """Reads the resolved config of a training run, perhaps of an older steelgen.

    Raises:
        InputError: if config.json is missing or damaged.
    """
    return load_record(run_dir / "config.json", RunSettings)


def load_result(run_dir: Path) -> RunResult:
    """Reads how a run ended.

    Raises:
        InputError: if result.json is missing or damaged.
    """
    return load_record(run_dir / RESULT_FILE, RunResult)


class MetricsLog:
    """metrics.jsonl and trackers of a run; entries after `resume_step` of an earlier attempt are dropped.

    Args:
        trackers: see `open_trackers`.
    """

    def __init__(self, run_dir: Path, resume_step: int, trackers: Sequence[str]) -> None:
        self.path = run_dir / "metrics.jsonl"
        if self.path.is_file():
            _drop_later_lines(self.path, resume_step)
        self._trackers = open_trackers(trackers, run_dir, resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and one point a scalar."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Flushes what the trackers have not sent or written yet."""
        for tracker in self._trackers:
            tracker.close()


class _Values(RootModel[dict[str, float]]):
    """A line of metrics.jsonl."""


def read_metrics(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The lines of a metrics.jsonl and what they hold, `step` among it; lines that a kill cut short are passed over.

    Raises:
        InputError: if the file is missing or no text.
    """
    for number, line in enumerate(load_text(path).splitlines(), start=1):
        try:
            # The gradient norm of a step that fp16's scaler skips is infinite.
            values = parse_record(parse_json(line, str(path), number, finite=False), _Values, str(path)).root
        except InputError:
            continue
        if "step" in values:
            yield line, values


def _drop_later_lines(path: Path, last_step: int) -> None:
    kept = [line + "\n" for line, values in read_metrics(path) if values["step"] <= last_step]
    with new_file(path) as working:
        working.write_text("".join(kept), encoding="utf-8")

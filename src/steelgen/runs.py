"""The run folder: resolved config, environment, metrics."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from steelgen import __version__
from steelgen.config.base import Section, config_to_json
from steelgen.errors import InputError
from steelgen.files import Record, check_output_free, load_record, new_file, save_json
from steelgen.trackers import open_trackers

RESULT_FILE = "result.json"
"""In a run folder once training has ended: global_step, stopped_by, finished."""

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


def open_run(run_dir: Path, config: Section, resume: bool) -> None:
    """Prepares a run folder: writes config.json and environment.json, takes an earlier attempt's result.json away.

    Raises:
        InputError: if the folder is in use and `resume` is not set.
    """
    if not resume:
        check_output_free(run_dir)
    elif run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / "config.json").is_file():
        raise InputError(f"{run_dir}: not a run folder (no config.json), cannot resume from it")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RESULT_FILE).unlink(missing_ok=True)
    save_json(run_dir / "config.json", config_to_json(config))
    save_json(run_dir / "environment.json", describe_environment())


def save_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Writes how a run ended; a batch script and the pipeline read from it whether training is to go on."""
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


def _drop_later_lines(path: Path, last_step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # a line cut short by a kill
    with new_file(path) as working:
        working.write_text("".join(kept), encoding="utf-8")

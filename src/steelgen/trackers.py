"""Where scalars of a run go beside metrics.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from steelgen.errors import InputError
from steelgen.files import Record, load_json, load_record, save_json

WANDB_FILE = "wandb.json"
"""In a run folder: the id under which Weights & Biases knows the run."""


class Tracker(Protocol):
    """Takes scalars."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """One point a scalar."""

    def close(self) -> None:
        """Flushes what is still under way."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError if one of the trackers is not installed."""
    if "wandb" not in names:
        return
    try:
        from wandb import init  # noqa: F401 - a folder wandb/ of logs would import, but has no init
    except ImportError:
        raise InputError(
            "train.trackers: wandb is not installed; `pip install 'steelgen[wandb]'`, or leave it out"
        ) from None


def open_trackers(names: Sequence[str], run_dir: Path, resume_step: int) -> list[Tracker]:
    """The trackers of a run that goes on after `resume_step`.

    Args:
        names: tensorboard, wandb.
        run_dir: with its config.json.
    """
    trackers: list[Tracker] = []
    if "tensorboard" in names:
        trackers.append(_TensorBoard(run_dir, resume_step))
    if "wandb" in names:
        trackers.append(_Wandb(run_dir))
    return trackers


class _TensorBoard:
    def __init__(self, run_dir: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Known(Record):
    """wandb.json."""

    id: str


class _Wandb:
    """One run of Weights & Biases, whatever the number of attempts; it drops steps that it has got already."""

    def __init__(self, run_dir: Path) -> None:
        import wandb

        path = run_dir / WANDB_FILE
        known = load_record(path, _Known).id if path.is_file() else None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "steelgen"),
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=load_json(run_dir / "config.json"),
                id=known,
                resume="allow",
            )
        except wandb.Error as error:  # no key, or no network
            raise InputError(f"wandb: {error}; WANDB_MODE=offline needs neither key nor network") from error
        save_json(path, {"id": self._run.id})

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()

"""Experiment trackers besides metrics.jsonl: TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from steelgen.errors import InputError
from steelgen.files import Record, load_json, load_record, save_json

WANDB_FILE = "wandb.json"
"""In a run folder: the id of the run in Weights & Biases."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError if a tracker is not installed."""
    if "wandb" not in names:
        return
    try:
        from wandb import init  # noqa: F401 - a folder wandb/ of logs can be imported, but has no init
    except ImportError:
        raise InputError("train.trackers: wandb is not installed; pip install 'steelgen[wandb]'") from None


def open_trackers(names: Sequence[str], run_dir: Path, resume_step: int) -> list[TensorBoard | Wandb]:
    """Opens the trackers of a run.

    Args:
        names: tensorboard, wandb.
        run_dir: the run folder; must contain config.json.
        resume_step: later points of an earlier attempt are dropped.
    """
    trackers: list[TensorBoard | Wandb] = []
    if "tensorboard" in names:
        trackers.append(TensorBoard(run_dir, resume_step))
    if "wandb" in names:
        trackers.append(Wandb(run_dir))
    return trackers


class TensorBoard:
    """Event files in the tensorboard/ of a run folder."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one point per scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes pending points."""
        self._writer.close()


class _RunId(Record):
    """wandb.json."""

    id: str


class Wandb:
    """One run in Weights & Biases for all attempts; it ignores steps that it has received before."""

    def __init__(self, run_dir: Path) -> None:
        import wandb

        path = run_dir / WANDB_FILE
        known = load_record(path, _RunId).id if path.is_file() else None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "steelgen"),
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=load_json(run_dir / "config.json"),
                id=known,
                resume="allow",
            )
        except wandb.Error as error:  # no key or no network
            raise InputError(f"wandb: {error}; set WANDB_MODE=offline to run without key and network") from error
        save_json(path, {"id": self._run.id})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one point per scalar."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Flushes pending points."""
        self._run.finish()

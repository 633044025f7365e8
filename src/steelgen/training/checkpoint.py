"""Checkpoints: safetensors and JSON, written atomically.

checkpoints/step-000500/
    training.json            global_step, the gradient scaler's state and the progress of the run
    weights.safetensors      the networks in training; with several, tensors are called NETWORK.tensor
    average.safetensors      exponential moving average of the networks used for sampling
    average-power-<std>.safetensors    power-function averages (train.ema_power_stds)
    optimizer.safetensors    AdamW's moments; with several phases, optimizer-<phase>.safetensors each
    trainable.safetensors    other tensors of the generator kind, if any
    generator/               the generator with averaged weights, ready for sampling

No random state is saved: every random number of training is a function of the seed and the step or crop number.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from steelgen.errors import InputError
from steelgen.files import Record, is_disk_full, load_record, new_folder, restore_folders, save_json, save_tensors
from steelgen.training.ema import WeightAverage
from steelgen.training.state import TrainingState

_TENSORS_FILE = "trainable.safetensors"


def save_checkpoint(run_dir: Path, state: TrainingState, keep: int) -> Path:
    """Writes checkpoints/step-<global_step> and removes all but the newest `keep`.

    Raises:
        InputError: if the disk is full; earlier checkpoints are kept.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step:06d}"
    if not folder.exists():
        with _explain_full_disk(folder, state), new_folder(folder, durable=True) as working:
            save_tensors(working / "weights.safetensors", state.network.state_dict())
            for name, average in _name_averages(state):
                save_tensors(working / f"{name}.safetensors", average.state_dict())
            for name, optimizer in _name_optimizers(state):
                save_tensors(working / f"{name}.safetensors", _flatten_optimizer(optimizer))
            if tensors := state.trainable.tensors():
                save_tensors(working / _TENSORS_FILE, tensors)
            with state.averaged():
                state.generator.save(working / "generator")
            save_progress(working, state)
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_progress(folder: Path, state: TrainingState) -> None:
    """Writes training.json of a checkpoint."""
    scaler = state.scaler.state_dict() if state.scaler is not None else None
    save_json(folder / "training.json", {"global_step": state.step, "scaler": scaler, "progress": state.progress()})


def remove_unfinished(run_dir: Path) -> None:
    """Removes folders left unfinished by killed processes; restores folders that were being replaced."""
    restore_folders(run_dir)
    patterns = ("checkpoints/.step-*", ".*best.*", ".*export*.*")
    leftovers = [path for pattern in patterns for path in run_dir.glob(pattern)]
    leftovers += {*run_dir.glob("checkpoints/step-*")} - {*list_checkpoints(run_dir)}  # killed while being removed
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Lists the complete checkpoints of a run, oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if (path / "training.json").is_file()]
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name)))


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Returns the latest complete checkpoint of a run; None if there is none."""
    checkpoints = list_checkpoints(run_dir)
    return checkpoints[-1] if checkpoints else None


def find_training_state(path: Path) -> Path:
    """Finds the folder with training.json of a run folder, a checkpoint or an import from ISDM.

    Raises:
        InputError: if there is none.
    """
    for folder in [path, path / "training", *reversed(list_checkpoints(path))]:
        if (folder / "training.json").is_file():
            return folder
    raise InputError(f"{path}: continue_training needs a training state (training.json), found only a generator")


def load_checkpoint(folder: Path, state: TrainingState, with_progress: bool = True) -> None:
    """Restores a training run in place; averages missing in the checkpoint start from its EMA.

    Args:
        with_progress: False restores only weights, averages, moments and the step, to start another run from.

    Raises:
        InputError: if the checkpoint is damaged or of another architecture; names the first differing tensor.
    """
    try:
        weights = load_file(folder / "weights.safetensors")
        averages = load_file(folder / "average.safetensors")
        moments = {name: load_file(folder / f"{name}.safetensors") for name, _ in _name_optimizers(state)}
        tensors = load_file(folder / _TENSORS_FILE) if (folder / _TENSORS_FILE).is_file() else {}
    except Exception as error:  # safetensors has an exception type of its own for damaged files
        raise InputError(f"{folder}: damaged checkpoint: {error}") from None
    network = state.network
    check_same_architecture(network, weights, folder)
    network.load_state_dict(weights)
    for name, average in _name_averages(state):
        path = folder / f"{name}.safetensors"
        average.load_state_dict(load_file(path) if path.is_file() else averages)
    for name, optimizer in _name_optimizers(state):
        _restore_optimizer(optimizer, moments[name])
    training = load_record(folder / "training.json", _Training, finite=False)
    if state.scaler is not None and training.scaler is not None:
        state.scaler.load_state_dict(training.scaler.model_dump(by_alias=True))
    state.step = training.global_step
    if tensors:
        state.trainable.restore_tensors(tensors)
    if with_progress:
        state.restore_progress(training.progress.model_dump(exclude_unset=True))


_Loss = Annotated[float, Field(allow_inf_nan=True)]
"""Not finite after divergence."""


class _Scaler(Record):
    scale: float = Field(gt=0)
    growth_factor: float = Field(gt=1)
    backoff_factor: float = Field(gt=0, lt=1)
    growth_interval: int = Field(ge=1)
    growth_tracker: int = Field(ge=0, alias="_growth_tracker")


class _Epochs(Record):
    epoch: int = Field(ge=0)
    sum: _Loss
    count: int = Field(ge=0)


class _Best(Record):
    criterion: str | None
    best_value: float | None
    best_step: int = Field(ge=0)
    last_step: int = Field(ge=0)


class _Copies(Record):
    in_a_row: int = Field(ge=0)
    begun_at: int | None


class _Progress(Record):
    """Output of `TrainingState.progress`; older checkpoints lack some fields."""

    epochs: _Epochs | None = None
    best: _Best | None = None
    copies: _Copies | None = None
    loss_history: list[list[_Loss]] | None = None
    trainable: dict[str, Any] | None = None
    unseen: dict[str, _Loss] | None = None


class _Training(Record):
    """training.json."""

    global_step: int = Field(ge=0)
    scaler: _Scaler | None = None
    progress: _Progress = _Progress()


def check_same_architecture(network: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Raises InputError naming the first tensor whose presence or shape differs."""
    own = network.state_dict()
    for name in [*own, *weights]:
        saved, wanted = (str(tuple(d[name].shape)) if name in d else "missing" for d in (weights, own))
        if saved != wanted:
            raise InputError(
                f"{folder}: checkpoint of another architecture: {name!r} is {saved} in it, "
                f"{wanted} in the config's network"
            )


@contextmanager
def _explain_full_disk(folder: Path, state: TrainingState) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        groups = [
            state.network.state_dict(),
            *(average.state_dict() for average in (*state.averages, state.average)),  # the EMA is in generator/ too
            *(_flatten_optimizer(optimizer) for optimizer in state.optimizers.values()),
            state.trainable.tensors(),
        ]
        needed = sum(tensor.nbytes for tensors in groups for tensor in tensors.values())
        free = shutil.disk_usage(folder.parent).free
        intact = newest_checkpoint(folder.parents[1])
        raise InputError(
            f"{folder}: the disk is full: a checkpoint needs {needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} are free; "
            f"{f'{intact} is intact, ' if intact else ''}free some space, then use --resume auto"
        ) from error


def _name_averages(state: TrainingState) -> Iterator[tuple[str, WeightAverage]]:
    """Averages with their file names."""
    yield "average", state.average
    for average in state.power_averages:
        yield f"average-power-{average.std:g}", average


def _name_optimizers(state: TrainingState) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """Optimizers with their file names."""
    for phase, optimizer in state.optimizers.items():
        yield f"optimizer-{phase}" if len(state.optimizers) > 1 else "optimizer", optimizer


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entries in state.items() for name, tensor in entries.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # Fused AdamW reads raw memory: moments need the memory layout of their parameter, which files do not keep.
    for parameter, entries in optimizer.state.items():
        for name, tensor in entries.items():
            if tensor.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(tensor)

"""Checkpoints: safetensors and JSON, written whole or not at all.

checkpoints/step-000500/
    training.json            global_step and the scaler's state
    weights.safetensors      the network as it is trained
    average.safetensors      its exponential moving average
    optimizer.safetensors    AdamW's moments
    generator/               the network with averaged weights, ready for sampling

No random state is kept: every random number of training is a function of the seed and the step or crop number.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Generator
from steelgen.training.ema import WeightAverage


def save_checkpoint(
    run_dir: Path,
    global_step: int,
    generator: Generator,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    keep: int,
    further: Sequence[WeightAverage] = (),
    progress: dict[str, Any] | None = None,
) -> Path:
    """Writes checkpoints/step-<global_step> and removes all but the newest `keep`.

    Args:
        further: more averages, each in a file of its own.
        progress: what else training goes on from, as JSON values; see `load_progress`.
    """
    folder = run_dir / "checkpoints" / f"step-{global_step:06d}"
    if not folder.exists():
        with new_folder(folder, durable=True) as working:
            save_file(_contiguous(generator.network.state_dict()), working / "weights.safetensors")
            save_file(_contiguous(average.state_dict()), working / "average.safetensors")
            for more in further:
                save_file(_contiguous(more.state_dict()), working / f"average-{more.decay:g}.safetensors")
            save_file(_flatten_optimizer(optimizer), working / "optimizer.safetensors")
            with average.applied():
                generator.save(working / "generator")
            save_json(
                working / "training.json",
                {
                    "global_step": global_step,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "progress": progress or {},
                },
            )
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def remove_unfinished(run_dir: Path) -> None:
    """Removes what killed processes left of checkpoints that they were writing."""
    for leftover in (run_dir / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if (path / "training.json").is_file()]
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name)))


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The complete checkpoint of a run with the most steps; None where there is none."""
    checkpoints = list_checkpoints(run_dir)
    return checkpoints[-1] if checkpoints else None


def find_training_state(path: Path) -> Path:
    """The folder with the training.json that a run folder, a checkpoint or an import from ISDM stands for.

    Raises:
        InputError: if there is none.
    """
    for folder in [path, path / "training", *reversed(list_checkpoints(path))]:
        if (folder / "training.json").is_file():
            return folder
    raise InputError(f"{path}: continue_training: holds no training state (training.json), only a finished generator")


def load_checkpoint(
    folder: Path,
    generator: Generator,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    further: Sequence[WeightAverage] = (),
) -> int:
    """Restores a training run in place; averages that the checkpoint has not start from its first one.

    Returns:
        The checkpoint's global_step.

    Raises:
        InputError: if the checkpoint is damaged or of another architecture; the first differing key is named.
    """
    try:
        weights = load_file(folder / "weights.safetensors")
        averages = load_file(folder / "average.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except Exception as error:  # safetensors has an exception type of its own for damaged files
        raise InputError(f"{folder}: damaged checkpoint: {error}") from None
    check_same_architecture(generator.network, weights, folder)
    generator.network.load_state_dict(weights)
    average.load_state_dict(averages)
    for more in further:
        path = folder / f"average-{more.decay:g}.safetensors"
        more.load_state_dict(load_file(path) if path.is_file() else averages)
    _restore_optimizer(optimizer, moments)
    state = load_json(folder / "training.json")
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return state["global_step"]


def load_progress(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as progress; empty where there was none."""
    return load_json(folder / "training.json").get("progress", {})


def check_same_architecture(network: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Raises InputError naming the first parameter whose presence or shape differs."""
    own = network.state_dict()
    for name in [*own, *weights]:
        if name not in weights:
            raise InputError(f"{folder}: a checkpoint of another architecture: it has no {name!r}")
        if name not in own:
            raise InputError(f"{folder}: a checkpoint of another architecture: the config's network has no {name!r}")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"{folder}: a checkpoint of another architecture: {name!r} is {tuple(weights[name].shape)} in it, "
                f"{tuple(own[name].shape)} in the config's network"
            )


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, entries in state.items()
        for name, tensor in entries.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # Fused AdamW walks raw memory, so a parameter's moments must have its memory layout, which files do not keep.
    for parameter, entries in optimizer.state.items():
        for name, tensor in entries.items():
            if tensor.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(tensor)

"""Trained generators on disk: where one lies, whether its weights are sound, and which one it is."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from steelgen.bundled import resolve_bundled
from steelgen.errors import InputError
from steelgen.files import aside_path, hash_files, load_json

DESCRIPTION_FILE = "generator.json"
"""In every saved generator's folder: its kind, the classes and the crop geometry it was trained with."""

_LARGEST_WEIGHT = 1e6
"""Weights of trained networks stay orders of magnitude below; above it, images are black or white all over."""


def check_weights(network: nn.Module, origin: Path) -> None:
    """Raises InputError naming the first tensor of a network that holds values with which nothing can be drawn.

    Args:
        network: just loaded.
        origin: the file or folder it came from.
    """
    for name, tensor in network.state_dict().items():
        largest = float(tensor.abs().amax()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if not largest <= _LARGEST_WEIGHT:
            held = "NaN" if math.isnan(largest) else f"a value of {largest:.3g}"
            raise InputError(f"{origin}: {name!r} holds {held}: damaged weights, or of a training that diverged")


def find_generator(path: Path) -> Path:
    """The folder with generator.json that a run folder, a checkpoint, an export or a bundled model stands for.

    Raises:
        InputError: if there is none.
    """
    path = resolve_bundled(path)
    aside = aside_path(path)  # where a kill left it that was about to be replaced
    if not path.is_dir() and not aside.is_dir():
        raise InputError(f"{path}: no such run, checkpoint or export")
    checkpoints = sorted((path / "checkpoints").glob("step-*"), key=lambda found: (len(found.name), found.name))
    for folder in [
        path if path.is_dir() else aside,
        path / "export",
        aside_path(path / "export"),
        path / "generator",
        *(checkpoint / "generator" for checkpoint in reversed(checkpoints)),
    ]:
        if (folder / DESCRIPTION_FILE).is_file():
            return folder
    raise InputError(
        f"{path}: holds no trained generator (no {DESCRIPTION_FILE} in it, its export/ or its checkpoints/)"
    )


def hash_weights(path: Path) -> str:
    """SHA-256 of a generator's weights, in hex: of the one file of weights, or of all of them in the order of names.

    Args:
        path: what `load_generator` takes.

    Raises:
        InputError: if there is no generator, or it has no weights.
    """
    if path.suffix == ".pt":
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint file")
        return hash_files(path)
    folder = find_generator(path)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: holds no weights (*.safetensors)")
    return hash_files(*files)


def hash_generator(path: Path, weights: str | None = None) -> str:
    """SHA-256, in hex, of all that a generator draws by: its weights and every setting saved beside them.

    What names versions and places in these settings does not count, so that a copy, or one saved again, is the same.

    Args:
        path: what `load_generator` takes.
        weights: what `hash_weights` gives, where that is known.

    Raises:
        InputError: if there is no generator, or it has no weights.
    """
    described: list[Any] = [weights or hash_weights(path)]
    if path.suffix == ".pt":
        from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_isdm_settings

        described.append(find_isdm_settings(path).model_dump(mode="json"))
    else:
        folder = find_generator(path)
        for file in [folder / DESCRIPTION_FILE, *sorted(folder.glob("*/*.json"))]:
            settings = load_json(file)
            described.append({key: settings[key] for key in settings if key[0] != "_" and key != "steelgen_version"})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

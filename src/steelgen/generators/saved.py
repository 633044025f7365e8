"""Trained generators on disk: lookup, weight checks and hashes."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file
from torch import nn

from steelgen import __version__
from steelgen.bundled import resolve_bundled
from steelgen.config.generator import LowResolutionSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError, first_line
from steelgen.files import Record, aside_path, hash_files, load_json, load_record, new_folder, save_json, save_tensors
from steelgen.generators import StoredGenerator

DESCRIPTION_FILE = "generator.json"
"""In every saved generator's folder: its kind, and the classes and crop geometry of its training."""

_WEIGHTS_FILE = "weights.safetensors"

_LARGEST_WEIGHT = 1e6
"""Weights of trained networks are orders of magnitude smaller; larger ones give entirely black or white images."""


def check_weights(network: nn.Module, origin: Path) -> None:
    """Raises InputError naming the first tensor of a network, loaded from `origin`, with NaN or too large values."""
    for name, tensor in network.state_dict().items():
        largest = float(tensor.abs().amax()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if not largest <= _LARGEST_WEIGHT:
            value = "NaN" if math.isnan(largest) else f"a value of {largest:.3g}"
            raise InputError(f"{origin}: {name!r} contains {value}: the weights are damaged or training diverged")


class SavedSettings(Record):
    """Settings in the generator.json of `save_generator`; each kind adds its `section`."""

    dataset: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images."""


def save_generator(
    folder: Path,
    kind: str,
    network: nn.Module,
    settings: SavedSettings,
    parts: Mapping[str, StoredGenerator] | None = None,
) -> None:
    """Writes a new folder with the weights of a generator's only network, and generator.json.

    Args:
        parts: generators that it works with, saved in folders of their names.
    """
    with new_folder(folder) as working:
        for name, part in (parts or {}).items():
            part.save(working / name)
        save_tensors(working / _WEIGHTS_FILE, network.state_dict())
        described = settings.model_dump(mode="json")
        save_json(working / DESCRIPTION_FILE, {"kind": kind, "steelgen_version": __version__, **described})


def load_saved_weights(folder: Path, network: nn.Module) -> None:
    """Loads the weights of `save_generator` into a network.

    Raises:
        InputError: if they are missing, damaged, or those of another architecture.
    """
    path = folder / _WEIGHTS_FILE
    try:
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors has an exception type of its own for damaged files
        raise InputError(f"{path}: weights do not fit this generator: {first_line(error)}") from None
    check_weights(network, path)


def find_generator(path: Path) -> Path:
    """Finds the folder with generator.json of a run folder, a checkpoint, an export or a bundled model.

    Raises:
        InputError: if there is none.
    """
    path = resolve_bundled(path)
    aside = aside_path(path)  # left by a process killed while replacing it
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
    raise InputError(f"{path}: no trained generator (no {DESCRIPTION_FILE} in it, its export/ or its checkpoints/)")


def is_refining(path: Path) -> bool:
    """Whether a saved generator refines coarse images.

    Args:
        path: see `find_generator`.

    Raises:
        InputError: if there is no generator, or its description is damaged.
    """
    return load_record(find_generator(path) / DESCRIPTION_FILE, _Described).low_resolution is not None


class _Described(Record):
    """The part of generator.json that is read here."""

    low_resolution: LowResolutionSection | None = None


def hash_weights(path: Path) -> str:
    """SHA-256 of a generator's weights, in hex; of several weight files, in the order of their names.

    Args:
        path: as for `load_generator`.

    Raises:
        InputError: if there is no generator, or it has no weights.
    """
    if path.suffix == ".pt":
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint file")
        return hash_files(path)
    folder = find_generator(path)
    # Deeper folders hold other generators, such as the refining stage of a bundled one.
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])
    if not files:
        raise InputError(f"{folder}: no weights (*.safetensors)")
    return hash_files(*files)


def hash_generator(path: Path, weights: str | None = None) -> str:
    """SHA-256 of a generator's weights and saved settings, in hex.

    Versions and paths in the settings are left out, so that a copy has the same hash.

    Args:
        path: as for `load_generator`.
        weights: the output of `hash_weights`, if known.

    Raises:
        InputError: if there is no generator, or it has no weights.
    """
    described: list[Any] = [weights or hash_weights(path)]
    if path.suffix == ".pt":
        described.append(find_family("semantic_diffusion").describe_file(path))
    else:
        folder = find_generator(path)
        for file in [folder / DESCRIPTION_FILE, *sorted(folder.glob("*/*.json"))]:
            settings = load_json(file)
            described.append({key: settings[key] for key in settings if key[0] != "_" and key != "steelgen_version"})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def find_family(kind: str) -> ModuleType:
    """Imports the subpackage of a generator kind; see `steelgen.generators.families`."""
    return importlib.import_module(f"steelgen.generators.{kind}")

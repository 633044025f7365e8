"""What training, sampling and evaluation know of a generative model.

A new kind of generator is a folder of its own with a class that satisfies `Generator`, a config section in
`config/generator.py`, and one line each in `build_generator` and `load_generator`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from steelgen.bundled import resolve_bundled
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.loss import CropLosses
from steelgen.diffusion.loss_history import LossHistory
from steelgen.errors import InputError
from steelgen.files import aside_path, hash_files, load_json

DESCRIPTION_FILE = "generator.json"
"""In every saved generator's folder: its kind, the classes and the crop geometry it was trained with."""


@dataclass(frozen=True)
class StartImages:
    """Images that drawing starts from, instead of from noise alone (SDEdit, Meng et al. 2022, arXiv 2108.01073)."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    strength: float
    """In (0, 1]: how much noise they get; 1 leaves nothing of them."""


@dataclass(frozen=True)
class ImageMoments:
    """What the training images are like on average, for the noise that drawing starts from (arXiv 2403.09638)."""

    mean: Tensor
    """(N, C, H, W) in [-1, 1]."""
    deviation: Tensor
    """(N, C, H, W), standard deviations in the same units."""


class Generator(Protocol):
    """A model that draws micrographs for masks."""

    info: DatasetInfo
    """Class names and colours of the masks."""
    geometry: CropGeometry
    """How micrographs become its images."""

    @property
    def network(self) -> nn.Module:
        """Everything trainable: what the optimizer, the EMA and the checkpoints see."""
        ...

    def compute_loss(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        seed: int,
        mask_dropout: float,
        positions: Tensor | None = None,
    ) -> CropLosses:
        """The loss of each crop of a batch.

        Args:
            network: `self.network`, possibly wrapped for distributed training; gradients flow through it.
            batch: `image` (N, C, S, S) in [-1, 1], `mask` (N, S, S) int64 class indices, `number` (N,) int64.
            seed: with the crop numbers it determines everything random, except dropout inside the network.
            mask_dropout: probability of replacing a mask by the null mask.
            positions: (N,) in [0, 1): at which shares of the noise schedule; None draws them.
        """
        ...

    def start_loss_history(self) -> LossHistory:
        """From now on `compute_loss` draws timesteps by the losses that the returned history has absorbed."""
        ...

    def draw_timesteps_lognormally(self, mean: float, std: float) -> None:
        """From now on `compute_loss` draws noise levels with ln σ ~ N(mean, std²) (arXiv 2206.00364, table 1)."""
        ...

    def draw(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: SolverSection | RespacedSolverSection,
        start: StartImages | None = None,
        noise: Tensor | None = None,
        moments: ImageMoments | None = None,
    ) -> Tensor:
        """Draws images for masks; image i depends on masks[i] and seeds[i] alone.

        Args:
            masks: (N, H, W) int64 class indices; any size from the geometry's image_size on.
            seeds: N random seeds.
            solver: how they are drawn.
            start: real images to start from.
            noise: (N, C, H, W) standard normal noise in place of what the seeds give.
            moments: of the images whose trace the noise at the first step is to hold; means nothing beside `start`.

        Returns:
            (N, C, H, W) in [-1, 1].
        """
        ...

    def compute_first_signal(self, solver: SolverSection | RespacedSolverSection) -> float:
        """√ᾱ of the first step of a solver: how much of an image is in what drawing starts from, in [0, 1)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes a new folder that `load_generator` reads."""
        ...


def build_generator(config: SemanticDiffusionSection, micrographs: Micrographs, geometry: CropGeometry) -> Generator:
    """An untrained generator for the classes and grey levels of training micrographs."""
    from steelgen.diffusion.generator import build_semantic_diffusion

    return build_semantic_diffusion(config, micrographs, geometry)


def load_generator(path: Path) -> Generator:
    """Loads a trained generator.

    Args:
        path: a run folder (its export, or else its newest checkpoint), a checkpoint, an export, bundled:NAME, or one
            of ISDM's `.pt` files with its config beside it.

    Raises:
        InputError: if there is no generator, or it does not load.
    """
    if path.suffix == ".pt":
        from steelgen.isdm.checkpoint import find_isdm_settings, load_isdm_checkpoint

        return load_isdm_checkpoint(path, find_isdm_settings(path))
    folder = find_generator(path)
    kind = load_json(folder / DESCRIPTION_FILE).get("kind")
    if kind == "semantic_diffusion":
        from steelgen.diffusion.generator import load_semantic_diffusion

        return load_semantic_diffusion(folder)
    raise InputError(f"{folder / DESCRIPTION_FILE}: unknown kind of generator {kind!r}")


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
        from steelgen.isdm.checkpoint import find_isdm_settings

        described.append(find_isdm_settings(path).model_dump(mode="json"))
    else:
        folder = find_generator(path)
        for file in [folder / DESCRIPTION_FILE, *sorted(folder.glob("*/*.json"))]:
            settings = load_json(file)
            described.append({key: settings[key] for key in settings if key[0] != "_" and key != "steelgen_version"})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

"""What training, sampling and evaluation know of a generative model.

A new kind of generator is a folder of its own with a class that satisfies `Generator`, a config section in
`config/generator.py`, and one line each in `build_generator` and `load_generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from steelgen.bundled import resolve_bundled
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import AnySolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.loss import CropLosses
from steelgen.diffusion.loss_history import LossHistory
from steelgen.errors import InputError
from steelgen.files import Record, aside_path, load_record

DESCRIPTION_FILE = "generator.json"
"""In every saved generator's folder: its kind, the classes and the crop geometry it was trained with."""


class _Kind(Record):
    kind: Literal["semantic_diffusion"]


@dataclass(frozen=True)
class StartImages:
    """Images that drawing starts from, instead of from noise alone (SDEdit, Meng et al. 2022, arXiv 2108.01073)."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    strength: float
    """In (0, 1]: how much noise they get; 1 leaves nothing of them."""


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

    def randomness(self, seed: int, mask_dropout: float) -> Callable[[int], dict[str, Tensor]]:
        """What is random of training crop number n besides its place: tensors by name, a function of (seed, n).

        Called in the loader's workers, which it is sent to.

        Args:
            mask_dropout: probability of replacing a mask by the null mask.
        """
        ...

    def compute_loss(self, network: nn.Module, batch: dict[str, Tensor], validates: bool = False) -> CropLosses:
        """The loss of each crop of a batch: tensors alone, for which the host waits nowhere.

        Args:
            network: `self.network`, possibly wrapped for distributed training; gradients flow through it.
            batch: `image` (N, C, S, S) in [-1, 1], `mask` (N, S, S) int64 class indices, `number` (N,) int64, and what
                `randomness` gives, on the network's device.
            validates: whether the loss is to be compared with that of other steps, not trained on.
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
        solver: AnySolverSection,
        start: StartImages | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draws images for masks; image i depends on masks[i] and seeds[i] alone.

        Args:
            masks: (N, H, W) int64 class indices; any size from the geometry's image_size on.
            seeds: N random seeds.
            solver: how they are drawn.
            start: real images to start from.
            noise: (N, C, H, W) standard normal noise in place of what the seeds give.

        Returns:
            (N, C, H, W) in [-1, 1].
        """
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
    load_record(folder / DESCRIPTION_FILE, _Kind)
    from steelgen.diffusion.generator import load_semantic_diffusion

    return load_semantic_diffusion(folder)


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

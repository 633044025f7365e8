"""What training, sampling and evaluation know of a generative model, whatever its kind.

A kind of generator is a folder of this one, see `families`; `saved` finds trained ones on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry

Batch = dict[str, Tensor]
"""`image` (N, C, S, S) in [-1, 1], `mask` (N, S, S) int64 class indices, `number` (N,) int64, and what
`Trainable.randomness` gives, on the networks' device."""
Randomness = Callable[[int], Batch]
"""What is random of crop number n besides its place: tensors by name, a function of (seed, n). Called in the loader's
workers, which it is sent to."""
Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor over the processes."""


@dataclass(frozen=True)
class StartImages:
    """Images that drawing starts from, instead of from noise alone (SDEdit, Meng et al. 2022, arXiv 2108.01073)."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    strength: float
    """In (0, 1]: how much noise they get; 1 leaves nothing of them."""


@dataclass(frozen=True)
class Latents:
    """Where images lie in the latent space of a generator that draws them in one pass."""

    space: str
    """"z", standard normal, between which one turns; or "w", styles, between which one goes straight on."""
    styles: Tensor
    """(N, D), or (N, L, D) with a style for each of L layers."""
    noise: Tensor
    """(N, M) standard normal, of the fine texture; M may be 0."""


@runtime_checkable
class LatentSpace(Protocol):
    """What generators that take "latents" have besides."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """Spaces that latents may lie in."""
        ...

    def find_latents(self, seeds: Sequence[int], space: str, size: tuple[int, int]) -> Latents:
        """Where the images of seeds lie, for images of `size` (H, W)."""
        ...

    def project(self, images: Tensor, steps: int, report: Callable[[int, int], None]) -> tuple[Latents, Tensor]:
        """Where the images lie that come nearest to given ones.

        Args:
            images: (N, C, H, W) in [-1, 1].
            steps: of optimization.
            report: told (steps done, steps in all).

        Returns:
            latents: in w; rmse: (N,), root mean squared error, of gray levels in [-1, 1].
        """
        ...


@dataclass(frozen=True)
class DrawRequest:
    """What is to be drawn; image i depends on row i alone."""

    seeds: Sequence[int]
    """N of them."""
    masks: Tensor | None = None
    """(N, H, W) int64 class indices, of any size from the geometry's image_size on; indices ≥ num_classes are ignored
    pixels. None for generators that need none."""
    solver: AnySolverSection | None = None
    """How diffusion steps from noise to images; None: by default."""
    start: StartImages | None = None
    """Real images to start from."""
    noise: Tensor | None = None
    """(N, C, H, W) standard normal noise in place of what the seeds give; (N, latent_dim) of a
    `LatentGenerator`."""
    latents: Latents | None = None
    """Where in latent space the images lie, in place of what the seeds give."""
    truncation: float | None = None
    """Styles are drawn to their mean, by this factor on their distance from it; None: not at all."""


class Drawn(NamedTuple):
    """What was drawn."""

    images: Tensor | None = None
    """(N, C, H, W) in [-1, 1]."""
    masks: Tensor | None = None
    """(N, H, W) int64 class indices, of generators that make them."""


class Generator(Protocol):
    """A trained, or not yet trained, model that draws."""

    kind: str
    """The name of its folder here."""
    info: DatasetInfo
    """Class names and colors of the masks."""
    geometry: CropGeometry
    """How micrographs become its images."""

    @property
    def needs(self) -> frozenset[str]:
        """What a request must hold besides seeds: "masks", "images"."""
        ...

    @property
    def takes(self) -> frozenset[str]:
        """What else a request may hold: "solver", "start", "noise", "latents", "truncation"."""
        ...

    @property
    def makes(self) -> frozenset[str]:
        """What is drawn: "images", "masks"."""
        ...

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What it draws with, by name."""
        ...

    def draw(self, request: DrawRequest) -> Drawn:
        """Draws what is asked for."""
        ...

    def save(self, folder: Path) -> None:
        """Writes a new folder that `load_generator` reads."""
        ...


@runtime_checkable
class LatentGenerator(Generator, Protocol):
    """A generator whose images are a function of a few numbers that mean something."""

    @property
    def latent_dim(self) -> int:
        """How many."""
        ...


class Losses(NamedTuple):
    """What a batch of N crops costs."""

    losses: Tensor
    """(N,) float32, as they are minimized."""
    positions: Tensor | None = None
    """(N,) in [0, 1): where in the noise schedule each crop lies, 0 being the clean end; None for other families."""
    parts: Mapping[str, Tensor] = {}
    """Further figures of the batch by name, each (N,), for the log."""


@dataclass(frozen=True)
class Phase:
    """A part of an optimizer step: which networks are trained, and how."""

    name: str
    trains: tuple[str, ...]
    """Names of networks, all of which the loss must depend on; the others are held fixed."""
    every: int = 1
    """Only in each so many-th step."""
    learning_rate: float = 1.0
    """Times train.learning_rate."""
    adam_betas: tuple[float, float] | None = None
    """AdamW's moment decays; None: train.adam_betas."""


class Trainable(Protocol):
    """What training knows of a generator: what is optimized, by which losses, and what must be kept to go on."""

    @property
    def generator(self) -> Generator:
        """Draws with the networks as they are being trained."""
        ...

    networks: Mapping[str, nn.Module]
    """All that is trained, by name; buffers belong to them."""
    averaged: tuple[str, ...]
    """Names of the networks that the generator draws with, of which averages are kept."""
    phases: tuple[Phase, ...]
    """Taken one after the other in each step, on the same crops. Where there is one, its name stands nowhere."""
    criteria: tuple[str, ...]
    """What may select best/, the first by default: "val_loss", "kid", "train_epoch_loss"."""

    @property
    def crop_options(self) -> dict[str, Any]:
        """What else a `CropDataset` is asked for."""
        ...

    def randomness(self, seed: int) -> Randomness:
        """For training."""
        ...

    def held_out_randomness(self, count: int) -> Randomness:
        """For validation: of crops 0 to count - 1, the same at every step of every run, without any dropout."""
        ...

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """The losses of a batch: tensors alone, for which the host waits nowhere.

        Args:
            networks: `self.networks`, those that the phase trains possibly wrapped for distributed training.
            validates: whether the loss is to be compared with that of other steps, not trained on.
        """
        ...

    def end_step(self, gather: Gather) -> None:
        """After the last phase of each optimizer step: takes in, from all processes, what the next step depends on."""
        ...

    def state(self) -> dict[str, Any]:
        """What changes from step to step and is no weight, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The same, as tensors by name: pools of images, for instance."""
        ...

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `tensors` gave."""
        ...


class SteadyState:
    """For a `Trainable` of which nothing but weights changes from step to step."""

    def end_step(self, gather: Gather) -> None:
        """See `Trainable.end_step`."""

    def state(self) -> dict[str, Any]:
        """See `Trainable.state`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainable.restore`."""

    def tensors(self) -> dict[str, Tensor]:
        """See `Trainable.tensors`."""
        return {}

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `Trainable.restore_tensors`."""


def draw_for_masks(
    generator: Generator,
    masks: Tensor,
    seeds: Sequence[int],
    solver: AnySolverSection | None = None,
    start: StartImages | None = None,
    noise: Tensor | None = None,
    latents: Latents | None = None,
    truncation: float | None = None,
) -> Tensor:
    """Images for masks (N, H, W), (N, C, H, W) in [-1, 1]; as many of its own where the generator needs no masks."""
    given = masks if "masks" in generator.needs else None
    steps = solver if "solver" in generator.takes else None
    drawn = generator.draw(DrawRequest(seeds, given, steps, start, noise, latents, truncation))
    assert drawn.images is not None, f"{generator.kind} makes no images"
    return drawn.images


def join_networks(networks: Mapping[str, nn.Module], names: Sequence[str] | None = None) -> nn.Module:
    """Several networks as one module, whose parameters are called NAME.parameter; a single one is that module itself.

    Args:
        names: of those to join; None: all.
    """
    chosen = {name: networks[name] for name in (networks if names is None else names)}
    return nn.ModuleDict(chosen) if len(chosen) > 1 else next(iter(chosen.values()))

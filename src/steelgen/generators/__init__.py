"""Interfaces of all generator kinds for training, sampling and evaluation.

Each kind is a subpackage (see `families`); `saved` finds trained generators on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry

Batch = dict[str, Tensor]
"""`image` (N, C, S, S) in [-1, 1], `mask` (N, S, S) int64 class indices, `number` (N,) int64, with data.source
`source_image` and `source_mask`, and the tensors of `Trainable.randomness`, on the networks' device."""
Randomness = Callable[[int], Batch]
"""Random tensors by name for crop number n, a function of (seed, n). Picklable; called in the data loader's workers."""
Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor over all processes."""


@dataclass(frozen=True)
class StartImages:
    """Images that sampling starts from instead of pure noise (SDEdit, Meng et al. 2022, arXiv 2108.01073)."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    strength: float
    """Noise added to the images, in (0, 1]; 1 leaves nothing of them."""


@dataclass(frozen=True)
class Latents:
    """Points in the latent space of a one-pass generator."""

    space: str
    """"z", standard normal, interpolated spherically; or "w", styles, interpolated linearly."""
    styles: Tensor
    """(N, D), or (N, L, D) with a style for each of L layers."""
    noise: Tensor
    """(N, M) standard normal noise of the fine texture; M may be 0."""


@runtime_checkable
class LatentSpace(Protocol):
    """Additional interface of generators that take "latents"."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """Supported latent spaces."""

    def find_latents(self, seeds: Sequence[int], space: str, size: tuple[int, int]) -> Latents:
        """Returns the latents of seeds, for images of `size` (H, W)."""

    def project(self, images: Tensor, steps: int, report: Callable[[int, int], None]) -> tuple[Latents, Tensor]:
        """Finds the latents whose images are closest to given ones.

        Args:
            images: (N, C, H, W) in [-1, 1].
            steps: optimization steps.
            report: called with (steps done, total steps).

        Returns:
            latents: in w; rmse: (N,), root mean squared error of gray levels in [-1, 1].
        """


@dataclass(frozen=True)
class DrawRequest:
    """Inputs of `Generator.draw`; image i depends only on row i."""

    seeds: Sequence[int]
    """N seeds."""
    masks: Tensor | None = None
    """(N, H, W) int64 class indices, at least the geometry's image_size in height and width; indices ≥ num_classes are
    ignored pixels. None for generators that need no masks."""
    images: Tensor | None = None
    """(N, C, H / f, W / f) in [-1, 1], rounded up, for generators that need or take "images": f is 1, or the factor of
    a refining generator."""
    solver: AnySolverSection | None = None
    """Solver of a diffusion model; None uses the default."""
    start: StartImages | None = None
    """Real images to start from."""
    noise: Tensor | None = None
    """(N, C, H, W) standard normal noise that replaces the seeds' noise; (N, latent_dim) for a `LatentGenerator`."""
    latents: Latents | None = None
    """Points in latent space that replace those of the seeds."""
    truncation: float | None = None
    """Factor on the distance of styles from their mean; None disables truncation."""
    fractions: Tensor | None = None
    """(N, num_classes) phase fractions of the masks to make; NaN leaves a class free."""
    known: Tensor | None = None
    """(N, H, W) bool, the pixels of `images` and `masks` to keep; the others are made anew. None keeps what is
    given."""
    wanted: frozenset[str] | None = None
    """Outputs to make, of `Generator.makes`; None makes all."""
    conditions: Tensor | None = None
    """(N, K) encoded conditions for generators that take "conditions", NaN where left open; None leaves all open."""


class Drawn(NamedTuple):
    """Outputs of `Generator.draw`."""

    images: Tensor | None = None
    """(N, C, H, W) in [-1, 1]."""
    masks: Tensor | None = None
    """(N, H, W) int64 class indices, for generators that make masks."""


class Generator(Protocol):
    """A generative model, trained or not."""

    kind: str
    """Name of its subpackage."""
    info: DatasetInfo
    """Class names and colors of the masks."""
    geometry: CropGeometry
    """How crops of micrographs become the network's images."""

    @property
    def needs(self) -> frozenset[str]:
        """Required fields of a request besides seeds: "masks", "images"."""

    @property
    def takes(self) -> frozenset[str]:
        """Optional fields of a request: "masks", "images", "solver", "start", "noise", "latents", "truncation",
        "fractions", "known", "conditions"."""

    @property
    def makes(self) -> frozenset[str]:
        """Outputs: "images", "masks"."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks used for sampling, by name."""

    def draw(self, request: DrawRequest) -> Drawn:
        """Generates images, masks or both."""


class StoredGenerator(Generator, Protocol):
    """A generator of one of the families, which can be written to disk and trained."""

    def save(self, folder: Path) -> None:
        """Writes a new folder that `load_generator` reads."""


@runtime_checkable
class LatentGenerator(Generator, Protocol):
    """A generator whose images are a function of a few interpretable latent variables."""

    @property
    def latent_dim(self) -> int:
        """Number of latent variables."""


@runtime_checkable
class StagedGenerator(Generator, Protocol):
    """A generator that turns images into others, in stages worth looking at in previews."""

    def draw_stages(self, images: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """Returns the stages, the images first, (N, C, H, W) in [-1, 1] each."""


class Codec(Protocol):
    """An autoencoder of images and masks, whose latents a diffusion model generates."""

    def reconstruct(self, images: Tensor, masks: Tensor | None) -> Drawn:
        """Encodes and decodes images (N, C, H, W) in [-1, 1] and, unless None, masks (N, H, W) int64."""

    def to(self, device: torch.device) -> Codec:
        """Moves the networks to a device."""


@runtime_checkable
class LatentDiffusion(Generator, Protocol):
    """A generator that may work on the latents of an autoencoder."""

    @property
    def codec(self) -> Codec | None:
        """The autoencoder; None for a generator of pixels."""


class Losses(NamedTuple):
    """Losses of a batch of N crops."""

    losses: Tensor
    """(N,) float32, the objective."""
    positions: Tensor | None = None
    """(N,) position of each crop in the noise schedule, in [0, 1), 0 at the clean end; None without a schedule."""
    parts: Mapping[str, Tensor] = {}
    """More values to log by name, each (N,)."""


@dataclass(frozen=True)
class Phase:
    """A part of an optimizer step that trains some of the networks with its own optimizer."""

    name: str
    trains: tuple[str, ...]
    """Names of the trained networks; the loss must depend on all of them. The other networks are frozen."""
    every: int = 1
    """Steps between runs of this phase; 1 runs it in every step."""
    start: int = 0
    """Completed steps before the first run of this phase."""
    learning_rate: float = 1.0
    """Factor on train.learning_rate."""
    adam_betas: tuple[float, float] | None = None
    """AdamW's moment decays; None uses train.adam_betas."""


class Trainable(Protocol):
    """A generator in training: its networks, phases, losses and resumable state."""

    @property
    def generator(self) -> StoredGenerator:
        """The generator that uses the networks in training."""

    networks: Mapping[str, nn.Module]
    """All trained networks by name, with their buffers."""
    averaged: tuple[str, ...]
    """Names of the networks used for sampling, whose weights are averaged."""
    phases: tuple[Phase, ...]
    """Run one after the other in each step, on the same crops. The name of a single phase appears in no output."""
    criteria: tuple[str, ...]
    """Criteria that may select best/, the default first: "val_loss", "kid", "train_epoch_loss"."""

    @property
    def crop_options(self) -> dict[str, Any]:
        """Extra arguments for `CropDataset`."""

    def randomness(self, seed: int) -> Randomness:
        """Random tensors of training crops."""

    def held_out_randomness(self, count: int) -> Randomness:
        """Random tensors of validation crops 0 to count - 1: the same in every run, without dropout."""

    def prepare(self, run_dir: Path, index: int, count: int, report: Callable[[str], None]) -> None:
        """Makes what training needs besides the dataset, in the run folder, before the first batch of each start.

        Args:
            run_dir: the run folder.
            index, count: of this process; all processes wait until each has made its share.
            report: called with a line for people.
        """

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """Computes the losses of a batch without synchronizing with the device.

        Args:
            networks: `self.networks`; those that the phase trains may be wrapped for distributed training.
            validates: True computes a validation loss, comparable across steps.
        """

    def end_step(self, gather: Gather) -> None:
        """Updates state that the next step depends on, across processes; called after each optimizer step."""

    def state(self) -> dict[str, Any]:
        """State besides weights, as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the output of `state`."""

    def tensors(self) -> dict[str, Tensor]:
        """State besides weights, as tensors by name, such as image pools."""

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores the output of `tensors`."""


class SteadyState:
    """Base class for a `Trainable` without state besides weights."""

    def prepare(self, run_dir: Path, index: int, count: int, report: Callable[[str], None]) -> None:
        """See `Trainable.prepare`."""

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


def join_networks(networks: Mapping[str, nn.Module], names: Sequence[str] | None = None) -> nn.Module:
    """Joins networks, all or those of `names`, into one module with parameters called NAME.parameter; returns a single
    network as it is."""
    chosen = {name: networks[name] for name in (networks if names is None else names)}
    return nn.ModuleDict(chosen) if len(chosen) > 1 else next(iter(chosen.values()))

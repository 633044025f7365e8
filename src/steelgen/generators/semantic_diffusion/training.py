"""Semantic diffusion as a `Trainable`: one network, one phase, the denoising loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from steelgen.config.generator import DiffusionTrainingSection
from steelgen.diffusion.loss import LossOptions, compute_diffusion_loss
from steelgen.diffusion.randomness import CropRandomness, HeldOutRandomness
from steelgen.diffusion.reverse import ReverseProcess, build_reverse_process
from steelgen.diffusion.timesteps import EvenTimesteps, LogNormalTimesteps, LossHistory, TimestepDistribution
from steelgen.generators import Batch, Gather, Losses, Phase, SteadyState
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion

_HISTORY = "loss_history"


class SemanticDiffusionTraining(SteadyState):
    """See `Trainable`."""

    averaged: tuple[str, ...] = ("unet",)
    phases: tuple[Phase, ...] = (Phase("denoise", ("unet",)),)
    criteria: tuple[str, ...] = ("val_loss", "kid", "train_epoch_loss")

    def __init__(self, generator: SemanticDiffusion, config: DiffusionTrainingSection) -> None:
        self.generator = generator
        self.networks: Mapping[str, nn.Module] = {"unet": generator.network}
        self._config = config
        self._options = LossOptions(generator.objective, generator.vlb_weight, generator.value_range)
        schedule, sampling = generator.schedule, config.timestep_sampling
        self._even = EvenTimesteps(len(schedule))
        self._distribution: TimestepDistribution = self._even
        if sampling == "lognormal":
            self._distribution = LogNormalTimesteps(schedule, config.lognormal_mean, config.lognormal_std)
        elif sampling == "loss_second_moment":
            self._distribution = LossHistory(len(schedule))
        self._process: ReverseProcess | None = None

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`: instance edges, if the network uses them."""
        return {"instance_edges": self.generator.network.config.instance_edges}

    def randomness(self, seed: int) -> CropRandomness:
        """See `Trainable.randomness`."""
        return CropRandomness(seed, self._shape, self._config.mask_dropout, len(self.generator.conditions))

    def held_out_randomness(self, count: int) -> HeldOutRandomness:
        """See `Trainable.held_out_randomness`: timesteps are spread evenly over the crops."""
        return HeldOutRandomness(count, self._shape)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`."""
        generator, device = self.generator, batch["image"].device
        mean, deviation = generator.intensity
        if self._process is None or self._process.betas.device != device:
            self._process = build_reverse_process(generator.schedule.betas).to(device)
        losses, timesteps = compute_diffusion_loss(
            networks["unet"],
            generator.schedule,
            {**batch, "image": (batch["image"] - mean) / deviation},
            generator.info.num_classes,
            self._options,
            self._even if validates else self._distribution,
            self._process,
        )
        # In validation the quantiles, which are finer than timesteps, decide the part of the schedule.
        return Losses(losses, batch["fraction"] if validates else timesteps / len(generator.schedule))

    def end_step(self, gather: Gather) -> None:
        """See `Trainable.end_step`."""
        if isinstance(self._distribution, LossHistory):
            self._distribution.absorb(gather)

    def state(self) -> dict[str, Any]:
        """See `Trainable.state`."""
        return {_HISTORY: self._distribution.state()} if isinstance(self._distribution, LossHistory) else {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainable.restore`."""
        if isinstance(self._distribution, LossHistory) and state.get(_HISTORY):
            self._distribution.restore(state[_HISTORY])

    @property
    def _shape(self) -> tuple[int, int, int]:
        geometry = self.generator.geometry
        return geometry.in_channels, geometry.image_size, geometry.image_size

"""Semantic diffusion as a `Trainable`: one network, one phase, the denoising loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steelgen.config.generator import DiffusionTrainingSection
from steelgen.config.train import RunConfig
from steelgen.diffusion.loss import LossOptions, compute_diffusion_loss, one_hot_with_dropout
from steelgen.diffusion.randomness import CropRandomness, HeldOutRandomness
from steelgen.diffusion.refinement import DegradationRandomness, degrade
from steelgen.diffusion.reverse import ReverseProcess, build_reverse_process
from steelgen.diffusion.timesteps import EvenTimesteps, LogNormalTimesteps, LossHistory, TimestepDistribution
from steelgen.generators import Batch, Gather, Generator, Losses, Phase, Randomness, SteadyState, Trainable
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.models.spade import shrink_one_hot

_HISTORY = "loss_history"
_HELD_OUT_SEED = 0
_HELD_OUT_SHARE = 0.5
"""Share of the strongest degradation of coarse images in validation."""


class SemanticDiffusionTraining(SteadyState):
    """See `Trainable`."""

    averaged: tuple[str, ...] = ("unet",)
    phases: tuple[Phase, ...] = (Phase("denoise", ("unet",)),)
    criteria: tuple[str, ...] = ("val_loss", "kid", "train_epoch_loss")

    def __init__(self, generator: SemanticDiffusion, config: DiffusionTrainingSection) -> None:
        self.generator = generator
        self.networks: Mapping[str, nn.Module] = {"unet": generator.network}
        self._config = config
        self._options = LossOptions(generator.objective, generator.vlb_weight, generator.value_range or (-1.0, 1.0))
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

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        crops = CropRandomness(seed, self._shape, self._config.mask_dropout, len(self.generator.conditions))
        return self._add_degradation(crops, seed)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`: timesteps are spread evenly over the crops."""
        return self._add_degradation(HeldOutRandomness(count, self._shape), _HELD_OUT_SEED, _HELD_OUT_SHARE)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`."""
        generator, device = self.generator, batch["image"].device
        if self._process is None or self._process.betas.device != device:
            self._process = build_reverse_process(generator.schedule.betas).to(device)
        losses, timesteps = compute_diffusion_loss(
            networks["unet"],
            generator.schedule,
            self._add_coarse({**batch, "image": generator.encode_images(batch["image"]), **self._shrink_masks(batch)}),
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

    def _shrink_masks(self, batch: Batch) -> Batch:
        """The one-hot masks at the resolution of the latents."""
        generator = self.generator
        if generator.codec is None:
            return {}
        one_hot = one_hot_with_dropout(batch["mask"], generator.info.num_classes)
        mode = generator.network.config.mask_resize
        return {"mask_shares": shrink_one_hot(one_hot, generator.factor, mode)}

    def _add_degradation(self, others: Randomness, seed: int, share: float | None = None) -> Randomness:
        """Adds the random tensors of a refining network's coarse images."""
        if self.generator.low_resolution is None:
            return others
        channels, *size = self._shape
        height, width = (edge // self.generator.low_resolution.factor for edge in size)
        return DegradationRandomness(others, seed, (channels, height, width), share)

    def _add_coarse(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes coarse images and details of the images of a batch, for a refining network."""
        low_resolution = self.generator.low_resolution
        if low_resolution is None:
            return batch
        noise_deviation = batch["coarse_noise"] * low_resolution.max_noise
        with torch.autocast(batch["image"].device.type, enabled=False):
            coarse = degrade(
                batch["image"],
                low_resolution.factor,
                batch["blur"] * low_resolution.max_blur,
                low_resolution.max_blur,
                batch["coarse_noise_image"],
                noise_deviation,
            )
        detail = (batch["image"] - coarse) / self.generator.detail
        return {**batch, "image": detail, "coarse": coarse, "coarse_noise": noise_deviation}

    @property
    def _shape(self) -> tuple[int, int, int]:
        generator = self.generator
        edge = generator.geometry.image_size // generator.factor
        return generator.network.config.in_channels, edge, edge


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, SemanticDiffusion)
    return SemanticDiffusionTraining(generator, config.diffusion)

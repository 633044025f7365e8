"""Joint diffusion as a `Trainable`: one network, one phase, the denoising losses of image and mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steelgen.config.generator import DiffusionTrainingSection
from steelgen.config.joint import NoiseLevelsSection
from steelgen.config.train import RunConfig
from steelgen.diffusion.known import find_whole_latents
from steelgen.diffusion.randomness import CropRandomness, HeldOutRandomness, crop_seed
from steelgen.diffusion.timesteps import EvenTimesteps, LogNormalTimesteps
from steelgen.errors import InputError
from steelgen.generators import Batch, Generator, Losses, Phase, Randomness, SteadyState, Trainable
from steelgen.generators.image_losses import compute_pixel_entropy
from steelgen.generators.joint_diffusion.estimate import estimate_clean
from steelgen.generators.joint_diffusion.generator import JointDiffusion
from steelgen.generators.joint_diffusion.levels import CLEAN, compute_levels, embed_time, spread_levels


@dataclass(frozen=True)
class JointRandomness:
    """Noise and noise levels of crop number n.

    Adds to the tensors of `crops`: `mask_fraction` and `relation` float64 in [0, 1), the quantiles of the mask's
    timestep and of the relation of both timesteps, and `reuses` bool, whether the network gets its own estimate.
    """

    crops: CropRandomness | HeldOutRandomness
    seed: int
    self_conditioning: float

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Returns the tensors of one crop."""
        rng = np.random.default_rng((crop_seed(number, self.seed), 5))
        mask_fraction, relation, reuse = rng.random(3)
        return {
            **self.crops(number),
            "mask_fraction": torch.tensor(mask_fraction),
            "relation": torch.tensor(relation),
            "reuses": torch.tensor(reuse < self.self_conditioning),
        }


class JointDiffusionTraining(SteadyState):
    """See `Trainable`.

    Args:
        generator: the generator to train.
        config: distribution of the timesteps, and mask_dropout, the share of crops whose mask is pure noise.

    Raises:
        InputError: if the shares of `NoiseLevelsSection` and mask_dropout exceed 1, mask_dropout is set without image
            channels, or the distribution depends on the loss.
    """

    averaged: tuple[str, ...] = ("unet",)
    phases: tuple[Phase, ...] = (Phase("denoise", ("unet",)),)

    def __init__(self, generator: JointDiffusion, config: DiffusionTrainingSection) -> None:
        self.generator = generator
        self.networks: Mapping[str, nn.Module] = {"unet": generator.network}
        self.criteria: tuple[str, ...] = ("val_loss", "kid", "train_epoch_loss")
        if not generator.channels:
            self.criteria = ("val_loss", "train_epoch_loss")
        levels = generator.section.levels
        if not generator.channels and config.mask_dropout not in (0, DiffusionTrainingSection().mask_dropout):
            raise InputError(
                f"diffusion.mask_dropout {config.mask_dropout:g}: not applicable to generator.image_channels none"
            )
        if levels.total + config.mask_dropout > 1 + 1e-9:
            raise InputError(
                f"diffusion.mask_dropout {config.mask_dropout:g} and the shares of generator.levels add up to "
                f"{levels.total + config.mask_dropout:g}, more than 1"
            )
        if config.timestep_sampling == "loss_second_moment":
            raise InputError("diffusion.timestep_sampling loss_second_moment: not applicable to kind joint_diffusion")
        self._even = EvenTimesteps(len(generator.schedule))
        self._distribution: EvenTimesteps | LogNormalTimesteps = self._even
        if config.timestep_sampling == "lognormal":
            self._distribution = LogNormalTimesteps(generator.schedule, config.lognormal_mean, config.lognormal_std)
        self._mask_dropout = config.mask_dropout

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`."""
        return {}

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        crops = CropRandomness(seed, self._shape, 0.0)
        return JointRandomness(crops, seed, self.generator.section.self_conditioning)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`: timesteps are spread evenly over the crops."""
        return JointRandomness(HeldOutRandomness(count, self._shape), 0, self.generator.section.self_conditioning)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`: the squared error of the image's velocity, plus the weighted cross-entropy of
        the mask's classes or the squared error of its velocity.

        Ignored pixels, and the one of image and mask that has no noise, are left out. In validation image and mask
        have the same timestep. Positions are those of the timestep that varies.
        """
        generator = self.generator
        channels, num_classes = generator.channels, generator.info.num_classes
        bits, known = generator.encode_masks(batch["mask"]), batch["mask"] < num_classes
        distribution = self._even if validates else self._distribution
        drawn, _ = distribution.draw(batch["fraction"])
        mask_drawn, _ = distribution.draw(batch["mask_fraction"])
        unlabeled = ~known.flatten(1).any(dim=1)
        if generator.codec:
            known = find_whole_latents(known, generator.factor)
        last = len(generator.schedule) - 1
        if validates or not channels:
            image_times, mask_times = drawn, torch.where(unlabeled, last, drawn)
        else:
            image_times, mask_times = relate_timesteps(
                drawn, mask_drawn, batch["relation"], unlabeled, generator.section.levels, self._mask_dropout, last
            )

        clean = torch.cat([generator.encode_images(batch["image"]), bits], dim=1)
        image_levels, mask_levels = (compute_levels(generator.schedule, each) for each in (image_times, mask_times))
        signal, spread = spread_levels(image_levels, mask_levels, channels, bits.shape[1])
        noisy = signal * clean + spread * batch["noise"]
        times = embed_time(image_times), embed_time(mask_times)
        network = networks["unet"]
        inputs = [noisy]
        if generator.section.self_conditioning:
            with torch.no_grad():
                first = network(torch.cat([noisy, torch.zeros_like(noisy)], dim=1), *times, return_dict=False)[0]
                estimate = estimate_clean(generator, noisy, first.float(), signal, spread)
            inputs.append(estimate * batch["reuses"][:, None, None, None])
        output = network(torch.cat(inputs, dim=1), *times, return_dict=False)[0].float()
        velocity = signal * batch["noise"] - spread * clean
        if generator.section.mask_prediction == "classes":
            errors = compute_pixel_entropy(output[:, channels:], batch["mask"])
        else:
            errors = (output[:, channels:] - velocity[:, channels:]).square().mean(dim=1)
        mask_loss = (errors * known).mean(dim=(1, 2)) * (mask_times != CLEAN)
        losses, parts = generator.section.mask_loss_weight * mask_loss, {"mask_loss": mask_loss}
        if channels:
            errors = (output[:, :channels] - velocity[:, :channels]).square()
            image_loss = errors.mean(dim=(1, 2, 3)) * (image_times != CLEAN)
            losses, parts = losses + image_loss, {"image_loss": image_loss, **parts}
        position = batch["fraction"] if validates else drawn / len(generator.schedule)
        return Losses(losses, position, parts)

    @property
    def _shape(self) -> tuple[int, int, int]:
        edge = self.generator.geometry.image_size // self.generator.factor
        return self.generator.channels + self.generator.bits, edge, edge


def relate_timesteps(
    drawn: Tensor,
    mask_drawn: Tensor,
    relation: Tensor,
    unlabeled: Tensor,
    levels: NoiseLevelsSection,
    mask_dropout: float,
    last: int,
) -> tuple[Tensor, Tensor]:
    """Chooses the timesteps of image and mask, each (N,) int64; `CLEAN` or one of the schedule.

    Args:
        drawn: (N,) timesteps of whichever varies; of the image if both do.
        mask_drawn: (N,) timesteps of the mask, if both vary.
        relation: (N,) in [0, 1), the quantile of the relation: pure noise for the mask, then those of `levels`, then
            independent timesteps.
        unlabeled: (N,) bool, crops without any labeled pixel, whose mask is pure noise.
        last: the timestep of pure noise.
    """
    bounds = [mask_dropout]
    for share in (levels.equal, levels.clean_mask, levels.clean_image, levels.no_image):
        bounds.append(bounds[-1] + share)
    dropped = (relation < bounds[0]) | unlabeled
    equal, clean_mask, clean_image, no_image = (
        (relation >= low) & (relation < high) & ~unlabeled for low, high in pairwise(bounds)
    )
    image_times = torch.where(no_image, last, torch.where(clean_image, CLEAN, drawn))
    mask_times = torch.where(equal | clean_image | no_image, drawn, mask_drawn)
    mask_times = torch.where(clean_mask, CLEAN, mask_times)
    return image_times, torch.where(dropped, last, mask_times)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, JointDiffusion)
    return JointDiffusionTraining(generator, config.diffusion)

"""Adapters as a `Trainable`: one network, one phase, the denoising loss of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steelgen.config.train import RunConfig
from steelgen.data.drivers import DriverOptions
from steelgen.diffusion.loss import compute_target
from steelgen.diffusion.randomness import CropRandomness, HeldOutRandomness, crop_seed, sample_fractions
from steelgen.diffusion.timesteps import EvenTimesteps, LogNormalTimesteps
from steelgen.errors import InputError
from steelgen.generators import Batch, Losses, Phase, Randomness, SteadyState
from steelgen.generators.latent_adapter.class_images import ClassImages, make_class_images
from steelgen.generators.latent_adapter.generator import LatentAdapter
from steelgen.generators.latent_adapter.prompts import Prompts, tokenize

_CLASS_STREAM = 6
"""Keeps the random numbers of class images apart from those of the crops."""


@dataclass(frozen=True)
class MaskInputs:
    """What the network sees of a crop's mask: `prompt` (L,) int64 token ids and, with a ControlNet, `drivers`."""

    prompts: Prompts
    tokenizer: Any
    drivers: DriverOptions | None

    def __call__(self, mask: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Returns the tensors of one mask (H, W)."""
        found = {"prompt": tokenize(self.tokenizer, self.prompts.write(mask))}
        if self.drivers is not None:
            found["drivers"] = torch.from_numpy(self.drivers.draw(mask, len(self.prompts.class_names)))
        return found


@dataclass(frozen=True)
class AdapterRandomness:
    """Adds to the tensors of `crops`: `kept` (D,) float32, 0 for the planes of dropped drivers, and for training with
    class images `class_image` (C, H, W), `class_noise` and `class_fraction`."""

    crops: CropRandomness | HeldOutRandomness
    seed: int
    planes: tuple[int, ...]
    """Number of planes of each driver."""
    dropout: float
    class_images: ClassImages | None = None

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Returns the tensors of one crop, functions of (seed, number)."""
        found = self.crops(number)
        seed = crop_seed(number, self.seed)
        if self.planes:
            kept = np.random.default_rng((seed, 5)).random(len(self.planes)) >= self.dropout
            found["kept"] = torch.from_numpy(np.repeat(kept, self.planes).astype(np.float32))
        if self.class_images is not None:
            source = torch.Generator().manual_seed(int(np.random.default_rng((seed, _CLASS_STREAM)).integers(2**63)))
            found["class_image"] = self.class_images.load(self.seed, number)
            found["class_noise"] = torch.randn(self.crops.shape, generator=source)
            found["class_fraction"] = sample_fractions(torch.tensor(number), self.seed + _CLASS_STREAM)
        return found


class LatentAdapterTraining(SteadyState):
    """See `Trainable`.

    Args:
        generator: the generator to train.
        config: of the run.

    Raises:
        InputError: if the distribution of timesteps depends on the loss.
    """

    averaged: tuple[str, ...] = ("adapters",)
    phases: tuple[Phase, ...] = (Phase("denoise", ("adapters",)),)
    criteria: tuple[str, ...] = ("val_loss", "kid", "train_epoch_loss")

    def __init__(self, generator: LatentAdapter, config: RunConfig) -> None:
        self.generator = generator
        self.networks: Mapping[str, nn.Module] = {"adapters": generator.network}
        options, section = config.diffusion, generator.section
        if options.timestep_sampling == "loss_second_moment":
            raise InputError("diffusion.timestep_sampling loss_second_moment: not applicable to kind latent_adapter")
        schedule = generator.base.schedule
        self._even = EvenTimesteps(len(schedule))
        self._distribution: EvenTimesteps | LogNormalTimesteps = self._even
        if options.timestep_sampling == "lognormal":
            self._distribution = LogNormalTimesteps(schedule, options.lognormal_mean, options.lognormal_std)
        self._dropout = options.mask_dropout
        self._seed = config.seed
        self._class_images = None
        if section.prior_loss_weight:
            self._class_images = ClassImages(section.num_class_images, self._image_shape)
        self._fixed = {"null": generator.null_prompt}
        if section.prior_loss_weight:
            self._fixed["class"] = tokenize(generator.base.tokenizer, section.class_prompt)

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`."""
        generator = self.generator
        return {"derive": MaskInputs(generator.prompts, generator.base.tokenizer, generator.drivers)}

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        control = self.generator.section.control
        crops = CropRandomness(seed, self._latent_shape, self._dropout)
        return AdapterRandomness(crops, seed, self._planes, control.dropout if control else 0.0, self._class_images)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`: timesteps are spread evenly over the crops."""
        return AdapterRandomness(HeldOutRandomness(count, self._latent_shape), 0, self._planes, 0.0)

    def prepare(self, run_dir: Path, index: int, count: int, report: Callable[[str], None]) -> None:
        """See `Trainable.prepare`: makes the class images."""
        if self._class_images is not None:
            self._class_images.folder = run_dir / "class_images"
            make_class_images(self.generator, self._class_images, self._seed, index, count, report)

    def state(self) -> dict[str, Any]:
        """See `Trainable.state`: which base the adapters belong to."""
        return {"base_hash": self.generator.base_hash}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainable.restore`.

        Raises:
            InputError: if the base has been replaced since.
        """
        if state.get("base_hash") != self.generator.base_hash:
            raise InputError(
                f"generator.base {self.generator.section.base!r}: has other weights than when the run was started"
            )

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`: the squared error of the base's target, plus that of as many class images."""
        network, schedule = self.generator.network, self.generator.base.schedule
        prompts = torch.where(batch["dropped"][:, None], self._place("null", batch), batch["prompt"])
        drivers = None
        if "drivers" in batch:
            kept = batch["kept"] * ~batch["dropped"][:, None]
            drivers = batch["drivers"] * kept[:, :, None, None]
        images, noise, fractions = batch["image"], batch["noise"], batch["fraction"]
        count = len(images)
        if "class_image" in batch and not validates:
            images = torch.cat([images, batch["class_image"]])
            noise = torch.cat([noise, batch["class_noise"]])
            fractions = torch.cat([fractions, batch["class_fraction"]])
            prompts = torch.cat([prompts, self._place("class", batch).expand(count, -1)])
            if drivers is not None:
                drivers = torch.cat([drivers, torch.zeros_like(drivers)])
        timesteps, _ = (self._even if validates else self._distribution).draw(fractions)
        latents = network.encode(images)
        noisy = schedule.add_noise(latents, noise, timesteps)
        prediction = networks["adapters"](noisy, timesteps, prompts, drivers)
        losses = (prediction - compute_target(schedule, latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
        positions = batch["fraction"] if validates else timesteps[:count] / len(schedule)
        if len(losses) == count:
            return Losses(losses, positions)
        own, prior = losses.split(count)
        parts = {"instance_loss": own, "prior_loss": prior}
        return Losses(own + self.generator.section.prior_loss_weight * prior, positions, parts)

    def _place(self, name: str, batch: Batch) -> Tensor:
        """A fixed prompt's token ids (L,) on the batch's device, copied there once."""
        device = batch["image"].device
        if self._fixed[name].device != device:
            self._fixed[name] = self._fixed[name].to(device)
        return self._fixed[name]

    @property
    def _planes(self) -> tuple[int, ...]:
        drivers = self.generator.drivers
        if drivers is None:
            return ()
        return tuple(
            len(DriverOptions((name,)).list_planes(self.generator.info.num_classes)) for name in drivers.drivers
        )

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        geometry = self.generator.geometry
        return geometry.in_channels, geometry.image_size, geometry.image_size

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        base = self.generator.base
        edge = self.generator.geometry.image_size // base.factor
        return base.latent_channels, edge, edge

"""Adversarial training in two phases: discriminator, then generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.config.train import RunConfig
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.generators import Batch, Generator, Losses, Phase, Randomness, Trainable
from steelgen.generators.adversarial import AdversarialTraining
from steelgen.generators.augment import AUGMENTATION_NUMBERS, augment, augment_mask
from steelgen.generators.gan.generator import Gan
from steelgen.generators.gan.losses import balance_classes, compute_lead, compute_player_losses
from steelgen.generators.gan.networks import build_discriminator
from steelgen.generators.image_losses import compute_cross_entropy
from steelgen.generators.penalty import compute_penalty
from steelgen.models.spade_gan import compute_log_odds


@dataclass(frozen=True)
class _GanRandomness:
    seed: int
    vector_size: int
    augments: bool

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Samples the randomness of one crop.

        `latents` (2, vector_size): for the discriminator and the generator phase. `transforms` (3,
        AUGMENTATION_NUMBERS), with augmentation: for the crop and for the generated image of either phase.
        """
        # Disjoint from sampling seeds, so that sampling does not repeat latents seen in training.
        seed = (self.seed * 1_000_003 + number) % 2**62 + 2**62
        source = torch.Generator().manual_seed(seed)
        numbers = {"latents": torch.randn(2, self.vector_size, generator=source)}
        if self.augments:
            numbers["transforms"] = torch.rand(3, AUGMENTATION_NUMBERS, generator=source)
        return numbers


class GanTraining(AdversarialTraining):
    """See `Trainable`.

    Args:
        generator: the generator to train; its discriminator is built here.
        config: config of the run.
    """

    averaged: tuple[str, ...] = ("generator",)
    criteria: tuple[str, ...] = ("kid",)

    def __init__(self, generator: Gan, config: RunConfig) -> None:
        section = generator.section
        super().__init__(config.train.train_batch_size, section.ada_target, section.ada_images)
        self.generator, self.section = generator, section
        discriminator = build_discriminator(section, generator.geometry, generator.info.num_classes)
        self.networks: Mapping[str, nn.Module] = {"generator": generator.network, "discriminator": discriminator}
        self.phases: tuple[Phase, ...] = tuple(
            Phase(name, (name,), learning_rate=rate, adam_betas=section.adam_betas)
            for name, rate in (("discriminator", section.discriminator_rate), ("generator", 1.0))
        )

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        edge = self.generator.geometry.image_size
        return _GanRandomness(seed, self.generator.count_numbers((edge, edge)), self.strength is not None)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`; adversarial losses are not validated."""
        return self.randomness(0)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`."""
        step = _AdversarialStep(self, networks, batch)
        return step.compute_generator_losses() if phase.name == "generator" else step.compute_discriminator_losses()


class _AdversarialStep:
    """Losses of both networks on one batch."""

    def __init__(self, training: GanTraining, networks: Mapping[str, nn.Module], batch: Batch) -> None:
        self._section, self._strength = training.section, training.strength
        self._penalizes = training.steps % self._section.penalty_every == 0
        self._generate, self._discriminate = networks["generator"], networks["discriminator"]
        self._real = training.generator.standardize(batch["image"])
        self._vectors = batch["latents"].unbind(dim=1)
        self._transforms = batch["transforms"].unbind(dim=1) if self._strength else None
        num_classes = training.generator.info.num_classes
        self._num_classes, self._mask = num_classes, batch["mask"]
        self._conditioning = (
            (one_hot_with_dropout(batch["mask"], num_classes),) if self._section.condition == "mask" else ()
        )

    def compute_discriminator_losses(self) -> Losses:
        """Computes the discriminator's losses."""
        with torch.no_grad():
            fake_images = self._generate(self._vectors[0], *self._conditioning).float()
        r1, r2 = (gamma if self._penalizes else 0.0 for gamma in (self._section.r1_gamma, self._section.r2_gamma))
        images = [image.requires_grad_(gamma > 0) for image, gamma in ((self._real, r1), (fake_images, r2))]
        precise = r1 > 0 or r2 > 0
        real, fake = (self._score(image, number, precise) for number, image in enumerate(images))
        losses, scores, lead = self._compare(real, fake)
        parts = {"score_real": scores[0].sigmoid(), "score_generated": scores[1].sigmoid()}
        if self._strength:
            self._strength.record(lead)
            parts |= {"r_t": lead, "ada_p": self._strength.on(lead.device).expand(len(lead))}
        for name, gamma, score, image in zip(("r1", "r2"), (r1, r2), scores, images, strict=True):
            if gamma > 0:
                penalty = compute_penalty(score, image)
                parts[name] = penalty.detach()
                losses = losses + self._section.penalty_every * gamma / 2 * penalty
        return Losses(losses, parts=parts)

    def compute_generator_losses(self) -> Losses:
        """Computes the generator's losses."""
        fake = self._score(self._generate(self._vectors[1], *self._conditioning).float(), 2)
        if self._section.objective == "segmentation":
            mask = self._augment_mask(2)
            weights = balance_classes(mask, self._num_classes)
            return Losses(compute_cross_entropy(fake, self._hide_ignored(mask), F.pad(weights, (0, 1), value=0.0)))
        real = fake
        if self._section.objective == "relativistic":
            with torch.no_grad():
                real = self._score(self._real, 0)
        return Losses(compute_player_losses(real, fake, self._section.objective)[1])

    def _compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Returns the discriminator's losses, its scores of real and generated images, and its lead; (N,) each."""
        if self._section.objective != "segmentation":
            lead = (real - fake if self._section.objective == "relativistic" else real).sign()
            return compute_player_losses(real, fake, self._section.objective)[0], (real, fake), lead
        mask = self._augment_mask(0)
        weights = F.pad(balance_classes(mask, self._num_classes), (0, 1), value=1.0)
        losses = compute_cross_entropy(real, self._hide_ignored(mask), weights)
        losses = losses + compute_cross_entropy(fake, torch.full_like(mask, self._num_classes), weights)
        odds = compute_log_odds(real)
        scores = odds.mean(dim=(1, 2)), compute_log_odds(fake).mean(dim=(1, 2))
        return losses, scores, compute_lead(odds, mask, weights)

    def _score(self, images: Tensor, number: int, precise: bool = False) -> Tensor:
        """Augments images by transform `number` and runs the discriminator."""
        if self._strength and self._transforms:
            strength = self._strength.on(images.device)
            with torch.autocast(images.device.type, enabled=False):
                images = augment(images, self._transforms[number], strength)
        return (self._discriminate(images, full_precision=True) if precise else self._discriminate(images)).float()

    def _augment_mask(self, number: int) -> Tensor:
        if self._strength and self._transforms:
            return augment_mask(self._mask, self._transforms[number], self._strength.on(self._mask.device))
        return self._mask

    def _hide_ignored(self, mask: Tensor) -> Tensor:
        """Maps ignored pixels to num_classes + 1; num_classes is the class of generated pixels."""
        return mask.where(mask < self._num_classes, self._num_classes + 1)


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, Gan)
    return GanTraining(generator, config)

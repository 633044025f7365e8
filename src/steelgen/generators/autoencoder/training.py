"""Training of the autoencoder in two phases: codecs, then, late, the discriminator of the images."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelgen.config.train import RunConfig
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.generators import Batch, Gather, Generator, Losses, Phase, Randomness, Trainable
from steelgen.generators.adversarial import AdversarialTraining
from steelgen.generators.autoencoder.generator import Autoencoder
from steelgen.generators.image_losses import (
    compute_cross_entropy,
    compute_distance,
    compute_log_power,
    compute_realness_loss,
)
from steelgen.models.patch_discriminator import PatchDiscriminator

_DISCRIMINATOR_BETAS = (0.5, 0.9)
"""Those of the discriminator of latent diffusion's autoencoders (Rombach et al. 2022)."""


@dataclass(frozen=True)
class _PosteriorNoise:
    seed: int
    shape: tuple[int, int, int]

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Samples `noise` (latent_channels, h, w) of one crop, standard normal."""
        # Disjoint from sampling seeds.
        seed = (self.seed * 1_000_003 + number) % 2**62 + 2**62
        return {"noise": torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))}


class AutoencoderTraining(AdversarialTraining):
    """See `Trainable`. Images: absolute difference, spectra, KL divergence and, from section.adversarial_start on, a
    patch discriminator. Masks: cross-entropy.

    Args:
        generator: the autoencoder to train; its discriminator is built here.
        config: config of the run.
    """

    criteria: tuple[str, ...] = ("val_loss", "kid", "train_epoch_loss")

    def __init__(self, generator: Autoencoder, config: RunConfig) -> None:
        section = generator.section
        super().__init__(config.train.train_batch_size, None, 1)
        self.generator, self.section = generator, section
        self.averaged: tuple[str, ...] = tuple(generator.networks)
        networks, phases = dict(generator.networks), [Phase("codec", self.averaged)]
        if section.adversarial_weight:
            networks["discriminator"] = PatchDiscriminator(
                generator.geometry.in_channels, section.discriminator_width, section.discriminator_layers
            )
            phases.append(
                Phase(
                    "discriminator",
                    ("discriminator",),
                    start=section.adversarial_start,
                    adam_betas=_DISCRIMINATOR_BETAS,
                )
            )
        self.networks: Mapping[str, nn.Module] = networks
        self.phases: tuple[Phase, ...] = tuple(phases)
        self._reconstructed: deque[Tensor] = deque()
        """Images of the codecs' phase, per micro-batch, for that of the discriminator."""

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`; a batch may be larger than an epoch."""
        return {}

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        edge = self.generator.geometry.image_size // self.generator.factor
        return _PosteriorNoise(seed, (self.section.latent_channels, edge, edge))

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`; validation uses the mean of the latents."""
        return self.randomness(0)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`; in validation without the discriminator, which changes from step to step."""
        real = self.generator.standardize(batch["image"])
        if phase.name == "discriminator":
            return self._judge(networks["discriminator"], real)
        section = self.section
        restored, divergence = networks["images"](real, None if validates else batch["noise"])
        distance = compute_distance(restored, real)
        losses, parts = distance + section.kl_weight * divergence, {"l1": distance, "kl": divergence}
        if section.spectral_weight:
            spectral = compute_distance(compute_log_power(restored), compute_log_power(real))
            losses, parts["spectral"] = losses + section.spectral_weight * spectral, spectral
        if "masks" in networks:
            one_hot = one_hot_with_dropout(batch["mask"], self.generator.info.num_classes)
            entropy = compute_cross_entropy(networks["masks"](one_hot), batch["mask"])
            losses, parts["cross_entropy"] = losses + section.mask_weight * entropy, entropy
        if validates or "discriminator" not in networks:
            return Losses(losses, parts=parts)
        self._reconstructed.append(restored.detach())
        if self.steps >= section.adversarial_start:
            fooled = compute_realness_loss(networks["discriminator"](restored).float(), real=True)
            losses, parts["adversarial"] = losses + section.adversarial_weight * fooled, fooled
        return Losses(losses, parts=parts)

    def _judge(self, discriminator: nn.Module, real: Tensor) -> Losses:
        """Least-squares losses of the discriminator (Mao et al. 2017, arXiv 1611.04076)."""
        scores = [discriminator(images).float() for images in (real, self._reconstructed.popleft())]
        losses = (compute_realness_loss(scores[0], real=True) + compute_realness_loss(scores[1], real=False)) / 2
        names = ("score_real", "score_generated")
        return Losses(losses, parts={name: score.mean(dim=(1, 2)) for name, score in zip(names, scores, strict=True)})

    def end_step(self, gather: Gather) -> None:
        """See `Trainable.end_step`."""
        super().end_step(gather)
        self._reconstructed.clear()  # before adversarial_start nobody takes them


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, Autoencoder)
    return AutoencoderTraining(generator, config)

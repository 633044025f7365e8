"""Adversarial training: the discriminator's phase, then the generator's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.generators import Batch, Losses, Phase, Randomness, SteadyState
from steelgen.generators.gan.generator import Gan
from steelgen.models.dcgan import DcganDiscriminator


@dataclass(frozen=True)
class _LatentRandomness:
    seed: int
    latent_dim: int

    def __call__(self, number: int) -> dict[str, Tensor]:
        """`latents` (2, latent_dim) of one crop: for the discriminator's phase, and for the generator's."""
        # Away from the seeds that images are drawn with, or training would show what sampling gives.
        seed = (self.seed * 1_000_003 + number) % 2**62 + 2**62
        return {"latents": torch.randn(2, self.latent_dim, generator=torch.Generator().manual_seed(seed))}


class GanTraining(SteadyState):
    """See `Trainable`: non-saturating logistic losses (Goodfellow et al. 2014, arXiv 1406.2661, section 3).

    Args:
        generator: is trained, against a discriminator that begins with it.
    """

    averaged: tuple[str, ...] = ("generator",)
    criteria: tuple[str, ...] = ("kid",)

    def __init__(self, generator: Gan) -> None:
        self.generator = generator
        section, geometry = generator.section, generator.geometry
        discriminator = DcganDiscriminator(geometry.image_size, geometry.in_channels, section.base_channels)
        self.networks: Mapping[str, nn.Module] = {"generator": generator.network, "discriminator": discriminator}
        self.phases: tuple[Phase, ...] = tuple(
            Phase(name, (name,), adam_betas=section.adam_betas) for name in ("discriminator", "generator")
        )

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`."""
        return {}

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        return _LatentRandomness(seed, self.generator.section.latent_dim)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`; there is no loss to validate by, since each half's is the other's."""
        return self.randomness(0)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`."""
        generate, judge = networks["generator"], networks["discriminator"]
        ours, theirs = batch["latents"].unbind(dim=1)
        if phase.name == "generator":
            return Losses(F.softplus(-judge(generate(theirs)).float()))
        with torch.no_grad():
            drawn = generate(ours)
        real, fake = judge(batch["image"]).float(), judge(drawn).float()
        scores = {"score_real": real.sigmoid(), "score_generated": fake.sigmoid()}
        return Losses(F.softplus(-real) + F.softplus(fake), parts=scores)

"""Training of the rotation-invariant variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steelgen.config.train import RunConfig
from steelgen.generators import Batch, Generator, Losses, Phase, Randomness, SteadyState, Trainable
from steelgen.generators.rvae.generator import Rvae


@dataclass(frozen=True)
class _PosteriorNoise:
    seed: int
    size: int

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Samples `noise` (size,) of one crop, standard normal."""
        # Disjoint from sampling seeds.
        seed = (self.seed * 1_000_003 + number) % 2**62 + 2**62
        return {"noise": torch.randn(self.size, generator=torch.Generator().manual_seed(seed))}


class RvaeTraining(SteadyState):
    """See `Trainable`. Maximizes the evidence lower bound by the reparameterization trick (Kingma & Welling 2014,
    arXiv 1312.6114, eq. 10), with KL annealing.

    Args:
        generator: the generator to train.
    """

    averaged: tuple[str, ...] = ("rvae",)
    phases: tuple[Phase, ...] = (Phase("elbo", ("rvae",)),)
    criteria: tuple[str, ...] = ("val_loss", "train_epoch_loss")

    def __init__(self, generator: Rvae) -> None:
        self.generator = generator
        self.networks: Mapping[str, nn.Module] = {"rvae": generator.network}

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`."""
        return {"centers": self.generator.list_centers(), "neighbors": self.generator.neighbors}

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        return _PosteriorNoise(seed, self.generator.latent_dim + 4)

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`."""
        return self.randomness(0)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`; losses are in nats per patch."""
        section = self.generator.section
        elbo = networks["rvae"](self.generator.stack_patches(batch), batch["noise"])
        divergence = elbo.kl_latents + elbo.kl_turn + elbo.kl_nuisances
        weight: Tensor | float = section.kl_weight
        if not validates and section.kl_crops:
            # A function of the crop's number, so that a resumed run continues with the same weights.
            weight = weight * (batch["number"] / section.kl_crops).clamp(max=1)
        return Losses(weight * divergence - elbo.log_likelihood, parts={"kl_latents": elbo.kl_latents})


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, Rvae)
    return RvaeTraining(generator)

"""Guided predictions of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steelgen.config.solver import AnySolverSection, RespacedSolverSection
from steelgen.models.semantic_unet import SemanticUNet
from steelgen.models.spade import MaskFeatures


class Coarse(NamedTuple):
    """The coarse images that a refining network is conditioned on."""

    images: Tensor
    """(N, C, H, W), enlarged to the size of the images, in the network's units."""
    noise: Tensor
    """(N,), standard deviation of the noise on them."""

    def select(self, rows: slice) -> Coarse:
        """Returns some of the images."""
        return Coarse(self.images[rows], self.noise[rows])


@dataclass(frozen=True)
class Guide:
    """Guidance settings.

    Args:
        scale: see `extrapolate`; 1 disables guidance.
        interval: noise levels (σ_low, σ_high] with guidance (arXiv 2404.07724); None guides at all levels.
        rescale: see `rescale_contrast`.
        weak_unet: the weaker network of autoguidance, given the mask too (arXiv 2406.02507); None uses the network
            itself with the null mask (arXiv 2207.12598).
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    weak_unet: SemanticUNet | None = None

    @classmethod
    def of(cls, solver: AnySolverSection, weak_unet: SemanticUNet | None = None) -> Guide:
        """Guidance of a solver section; respaced solvers guide every step."""
        if isinstance(solver, RespacedSolverSection):
            return cls(solver.guidance_scale)
        return cls(solver.guidance_scale, solver.guidance_interval, solver.guidance_rescale, weak_unet)

    def acts_at(self, sigma: float) -> bool:
        """Whether a step at noise level σ is guided."""
        inside = self.interval is None or self.interval[0] < sigma <= self.interval[1]
        return self.scale != 1 and inside

    def extrapolate(self, conditional: Tensor, weak: Tensor) -> Tensor:
        """Guides predictions (N, C, H, W): weak + scale·(conditional − weak), with the contrast of `rescale`."""
        prediction = weak + self.scale * (conditional - weak)
        return rescale_contrast(prediction, conditional, self.rescale) if self.rescale else prediction


class GuidedNetwork:
    """Guided predictions for masks (N, num_classes, H, W), whose features are computed once for all steps.

    Args:
        max_bytes: memory for cached γ and β.
        coarse: for refining networks.
        conditions: (N, K); see `ConditionEmbedding`. Guidance extrapolates from the prediction without them, too.
    """

    def __init__(
        self,
        unet: SemanticUNet,
        one_hot_mask: Tensor,
        guide: Guide,
        max_bytes: float = math.inf,
        coarse: Coarse | None = None,
        conditions: Tensor | None = None,
    ) -> None:
        self._unet = unet
        self._coarse = coarse
        self._guide = guide
        self._weak: MaskFeatures | None = None
        """N rows for the weaker network of autoguidance."""
        if guide.weak_unet is not None and guide.scale != 1:
            max_bytes /= 2
            self._weak = guide.weak_unet.compute_mask_features(one_hot_mask, max_bytes, conditions)
        elif guide.scale != 1:
            one_hot_mask = torch.cat([one_hot_mask, torch.zeros_like(one_hot_mask[:1])])
            if conditions is not None:
                conditions = torch.cat([conditions, torch.full_like(conditions[:1], math.nan)])
        self._strong = unet.compute_mask_features(one_hot_mask, max_bytes, conditions)
        """N rows for the conditional pass and, with classifier-free guidance, one more for the null mask."""

    @property
    def cached_bytes(self) -> int:
        """Memory of the mask features."""
        return sum(features.nbytes for features in (self._strong, self._weak) if features is not None)

    def predict(self, image: Tensor, time: Tensor, guided: bool) -> Tensor:
        """Predicts for noisy images (N, C, H, W); float32 of the same shape.

        With a learned reverse variance, its channels of the conditional pass follow: (N, 2·C, H, W). The conditional
        and the null pass of classifier-free guidance run as one batch.

        Args:
            time: (1,) or (N,), the network's time input, on the device of the images.
            guided: False runs only the conditional pass.
        """
        n, channels = image.shape[:2]
        if not guided or self._weak is not None:
            conditional = self._run(self._unet, image, time.expand(n), self._strong.select(slice(n)))
            if not guided:
                return conditional
            assert self._guide.weak_unet is not None
            assert self._weak is not None
            weak = self._run(self._guide.weak_unet, image, time.expand(n), self._weak)
        else:
            both = self._run(self._unet, torch.cat([image, image]), time.expand(n).repeat(2), self._strong)
            conditional, weak = both.chunk(2)
        (conditional, variance), (weak, _) = (split_variance(output, channels) for output in (conditional, weak))
        return torch.cat([self._guide.extrapolate(conditional, weak), variance], dim=1)

    def _run(self, unet: SemanticUNet, image: Tensor, timesteps: Tensor, features: MaskFeatures) -> Tensor:
        coarse = {}
        if self._coarse is not None:
            passes = len(image) // len(self._coarse.images)
            images = self._coarse.images.repeat(passes, 1, 1, 1).to(unet.dtype)
            coarse = {"coarse": images, "coarse_noise": self._coarse.noise.repeat(passes)}
        return unet(image.to(unet.dtype), timesteps, mask_features=features, **coarse).float()


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Splits an output into the prediction (N, channels, H, W) and the learned variance, with as many channels or 0."""
    return output[:, :channels], output[:, channels:]


def rescale_contrast(prediction: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """φ·x·σ(conditional)/σ(x) + (1 − φ)·x with σ over each image (Lin et al. 2023, arXiv 2305.08891, eq. 15-16)."""
    target, current = (tensor.std(dim=(1, 2, 3), keepdim=True) for tensor in (conditional, prediction))
    return strength * prediction * target / current + (1 - strength) * prediction

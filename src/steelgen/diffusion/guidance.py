"""Guided predictions of the network, for the steps of a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steelgen.config.solver import AnySolverSection, RespacedSolverSection
from steelgen.models.semantic_unet import MaskFeatures, SemanticUNet


@dataclass(frozen=True)
class Guide:
    """What a prediction is pushed away from, and when.

    Args:
        scale: weak + scale·(conditional − weak); 1 guides not at all.
        interval: noise levels (σ_low, σ_high] at which to guide; None: all (arXiv 2404.07724).
        rescale: see `rescale_contrast`.
        weak_unet: autoguidance's weaker network, which sees the mask too (arXiv 2406.02507); None: the network itself
            with the null mask (arXiv 2207.12598).
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    weak_unet: SemanticUNet | None = None

    @classmethod
    def of(cls, solver: AnySolverSection, weak_unet: SemanticUNet | None = None) -> Guide:
        """What a solver section asks for; respaced ones guide every step."""
        if isinstance(solver, RespacedSolverSection):
            return cls(solver.guidance_scale)
        return cls(solver.guidance_scale, solver.guidance_interval, solver.guidance_rescale, weak_unet)

    def acts_at(self, sigma: float) -> bool:
        """Whether a step at noise level σ is guided."""
        inside = self.interval is None or self.interval[0] < sigma <= self.interval[1]
        return self.scale != 1 and inside


class GuidedNetwork:
    """The guided prediction of a network for a batch of masks, whose features are computed once for all steps.

    Args:
        unet: the network.
        one_hot_mask: (N, num_classes, H, W).
        guide: what predictions are pushed away from.
        max_bytes: memory for γ and β that are kept over the steps.
    """

    def __init__(self, unet: SemanticUNet, one_hot_mask: Tensor, guide: Guide, max_bytes: float = math.inf) -> None:
        self._unet = unet
        self._guide = guide
        self._weak: MaskFeatures | None = None
        """N rows for autoguidance's weaker network."""
        if guide.weak_unet is not None and guide.scale != 1:
            max_bytes /= 2
            self._weak = guide.weak_unet.compute_mask_features(one_hot_mask, max_bytes)
        elif guide.scale != 1:
            one_hot_mask = torch.cat([one_hot_mask, torch.zeros_like(one_hot_mask[:1])])
        self._strong = unet.compute_mask_features(one_hot_mask, max_bytes)
        """N rows for the conditional pass and, under classifier-free guidance, one more for the null mask."""

    def predict(self, image: Tensor, time: Tensor, guided: bool) -> Tensor:
        """The network's prediction for noisy images (N, C, H, W), as float32 of the same shape.

        Where the network has learned the reverse variance, the conditional pass's channels of it follow:
        (N, 2·C, H, W). Conditional and null pass of classifier-free guidance run as one batch.

        Args:
            time: (1,) or (N,), what the network is told, on the device of the images.
            guided: False runs the conditional pass alone.
        """
        n, channels = image.shape[:2]
        if not guided or self._weak is not None:
            conditional = _run(self._unet, image, time.expand(n), self._strong.select(slice(n)))
            if not guided:
                return conditional
            assert self._guide.weak_unet is not None
            assert self._weak is not None
            weak = _run(self._guide.weak_unet, image, time.expand(n), self._weak)
        else:
            both = _run(self._unet, torch.cat([image, image]), time.expand(n).repeat(2), self._strong)
            conditional, weak = both.chunk(2)
        (conditional, variance), (weak, _) = (split_variance(output, channels) for output in (conditional, weak))
        prediction = weak + self._guide.scale * (conditional - weak)
        if self._guide.rescale:
            prediction = rescale_contrast(prediction, conditional, self._guide.rescale)
        return torch.cat([prediction, variance], dim=1)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The prediction (N, channels, H, W) of an output, and the channels of a learned variance: as many, or none."""
    return output[:, :channels], output[:, channels:]


def rescale_contrast(prediction: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """φ·x·σ(conditional)/σ(x) + (1 − φ)·x with σ over each image (Lin et al. 2023, arXiv 2305.08891, eq. 15-16)."""
    deviations = (tensor.std(dim=(1, 2, 3), keepdim=True) for tensor in (conditional, prediction))
    wanted, present = deviations
    return strength * prediction * wanted / present + (1 - strength) * prediction


def _run(unet: SemanticUNet, image: Tensor, timesteps: Tensor, features: MaskFeatures) -> Tensor:
    return unet(image.to(unet.dtype), timesteps, mask_features=features).float()

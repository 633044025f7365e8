"""One guided prediction of the network, for one step of a solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def acts_at(self, sigma: float) -> bool:
        """Whether a step at noise level σ is guided."""
        inside = self.interval is None or self.interval[0] < sigma <= self.interval[1]
        return self.scale != 1 and inside


@dataclass(frozen=True)
class GuidedFeatures:
    """Mask features of a batch of N masks, computed once for all steps."""

    strong: MaskFeatures
    """N rows for the conditional pass and, under classifier-free guidance, one more for the null mask."""
    weak: MaskFeatures | None
    """N rows for autoguidance's weaker network."""


def compute_guided_features(unet: SemanticUNet, one_hot_mask: Tensor, guide: Guide, max_bytes: float) -> GuidedFeatures:
    """Computes γ and β of all SPADE norms for masks (N, num_classes, H, W)."""
    if guide.weak_unet is not None and guide.scale != 1:
        strong = unet.compute_mask_features(one_hot_mask, max_bytes / 2)
        return GuidedFeatures(strong, guide.weak_unet.compute_mask_features(one_hot_mask, max_bytes / 2))
    if guide.scale != 1:
        one_hot_mask = torch.cat([one_hot_mask, torch.zeros_like(one_hot_mask[:1])])
    return GuidedFeatures(unet.compute_mask_features(one_hot_mask, max_bytes), None)


def predict(
    unet: SemanticUNet, image: Tensor, timestep: Tensor, features: GuidedFeatures, guide: Guide, guided: bool
) -> Tensor:
    """The network's prediction for noisy images (N, C, H, W), as float32 of the same shape.

    Where the network has learned the reverse variance, the conditional pass's channels of it follow: (N, 2·C, H, W).
    Conditional and null pass of classifier-free guidance run as one batch.

    Args:
        guided: False runs the conditional pass alone.
    """
    n, channels = image.shape[:2]
    timesteps = timestep.expand(2 * n).to(image.device)
    if not guided or features.weak is not None:
        conditional = _run(unet, image, timesteps[:n], features.strong.select(slice(n)))
        if not guided:
            return conditional
        assert guide.weak_unet is not None
        assert features.weak is not None
        weak = _run(guide.weak_unet, image, timesteps[:n], features.weak)
    else:
        conditional, weak = _run(unet, torch.cat([image, image]), timesteps, features.strong).chunk(2)
    (conditional, variance), (weak, _) = (split_variance(output, channels) for output in (conditional, weak))
    prediction = weak + guide.scale * (conditional - weak)
    if guide.rescale:
        prediction = rescale_contrast(prediction, conditional, guide.rescale)
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

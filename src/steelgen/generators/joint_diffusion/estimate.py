"""What the network's output says of the clean image and mask."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import UNet2DModel
from torch import Tensor

from steelgen.config.joint import JointDiffusionSection
from steelgen.data.folder import DatasetInfo
from steelgen.diffusion.analog_bits import compute_expected_bits, compute_probabilities, tilt_fractions
from steelgen.diffusion.noise import NoiseSchedule


class JointModel(Protocol):
    """What estimates and sampling need of a generator; see `JointDiffusion`."""

    network: UNet2DModel
    schedule: NoiseSchedule
    section: JointDiffusionSection
    info: DatasetInfo

    @property
    def channels(self) -> int:
        """Channels of the image."""

    @property
    def bits(self) -> int:
        """Channels of the mask."""


def estimate_clean(
    model: JointModel,
    noisy: Tensor,
    output: Tensor,
    signal: Tensor,
    spread: Tensor,
    fractions: Tensor | None = None,
    region: Tensor | None = None,
) -> Tensor:
    """Computes the expected image and mask without noise, (N, channels + bits, H, W).

    Args:
        noisy: (N, channels + bits, H, W) in the network's units.
        output: the network's for it: velocities of the image, and class logits or velocities of the mask.
        signal, spread: levels of signal and noise, which broadcast with `noisy`.
        fractions, region: see `tilt_fractions`; not for latents.
    """
    split = model.channels
    image = signal[:, :split] * noisy[:, :split] - spread[:, :split] * output[:, :split]
    if model.section.mask_prediction == "classes":
        probabilities = output[:, split:].softmax(dim=1)
    else:
        mask = signal[:, split:] * noisy[:, split:] - spread[:, split:] * output[:, split:]
        if not model.section.latent:
            mask = mask.clamp(-1, 1)  # where expected bits are
        if fractions is None:
            return torch.cat([image, mask], dim=1)
        probabilities = compute_probabilities(mask, model.info.num_classes)
    if fractions is not None:
        probabilities = tilt_fractions(probabilities, fractions, region)
    return torch.cat([image, compute_expected_bits(probabilities)], dim=1)

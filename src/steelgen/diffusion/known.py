"""What is known of an image before it is sampled: some of its pixels (inpainting), or its mean gray level.

Source: Wang et al. 2022, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (arXiv 2212.00490),
eq. 8: in every step, what is known replaces that of the estimated image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from steelgen.diffusion.noise import combine_target


@dataclass(frozen=True)
class KnownPixels:
    """Pixels with known values; all others are sampled to fit them."""

    known: Tensor
    """(N, 1, H, W) bool."""
    values: Tensor
    """(N, C, H, W) in the network's units."""

    def select(self, rows: slice) -> KnownPixels:
        """Returns the rows of a batch."""
        return KnownPixels(self.known[rows], self.values[rows])

    def to(self, device: torch.device) -> KnownPixels:
        """Returns a copy on a device."""
        return KnownPixels(self.known.to(device), self.values.to(device))

    def correct(self, output: Tensor, noisy: Tensor, sigma: float, prediction_type: str) -> Tensor:
        """Makes the estimated image of a prediction equal the known values.

        Args:
            output: (N, C or more, H, W), the network's prediction in its first C channels.
            noisy: (N, C, H, W), the network's input.
            sigma: noise level σ = √((1 − ᾱ)/ᾱ) of the input; infinite for pure noise.
            prediction_type: "epsilon", "sample", "v_prediction" or "flow".
        """
        wanted = _predict(self.values, noisy, sigma, prediction_type)
        channels = self.values.shape[1]
        corrected = torch.where(self.known, wanted, output[:, :channels])
        return torch.cat([corrected, output[:, channels:]], dim=1)


@dataclass(frozen=True)
class KnownMean:
    """Images with a known mean gray level; everything else is sampled to fit it."""

    levels: Tensor
    """(N,) in the network's units; NaN where it is not known."""

    def select(self, rows: slice) -> KnownMean:
        """Returns the rows of a batch."""
        return KnownMean(self.levels[rows])

    def to(self, device: torch.device) -> KnownMean:
        """Returns a copy on a device."""
        return KnownMean(self.levels.to(device))

    def correct(self, output: Tensor, noisy: Tensor, sigma: float, prediction_type: str) -> Tensor:
        """Shifts the estimated image of a prediction to the known mean; see `KnownPixels.correct`."""
        channels, levels = noisy.shape[1], self.levels[:, None, None, None]
        noisy_mean, mean = (each.mean(dim=(1, 2, 3), keepdim=True) for each in (noisy, output[:, :channels]))
        # Predictions are affine in the image, so that the wanted mean prediction is that for the wanted mean.
        shift = _predict(levels, noisy_mean, sigma, prediction_type) - mean
        shifted = output[:, :channels] + torch.where(levels.isnan(), 0.0, shift)
        return torch.cat([shifted, output[:, channels:]], dim=1)


Known = KnownPixels | KnownMean


def _predict(image: Tensor, noisy: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """Returns the network's output that stands for an image, given the noisy one."""
    spread = 1.0 if math.isinf(sigma) else sigma / math.hypot(1, sigma)
    signal = 1 / math.hypot(1, sigma)
    if prediction_type == "flow":  # x_t = (1 − t)·x₀ + t·ε
        signal, spread = signal / (signal + spread), spread / (signal + spread)
    return combine_target(prediction_type, image, (noisy - signal * image) / spread, signal, spread)


def find_whole_latents(known: Tensor, factor: int) -> Tensor:
    """Finds the latents of which all pixels are known: (N, H, W) bool → (N, ceil(H / factor), ceil(W / factor))."""
    unknown = (~known)[:, None].float()
    return F.max_pool2d(unknown, factor, ceil_mode=True)[:, 0] == 0

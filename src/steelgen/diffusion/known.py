"""Inpainting: pixels that are known before sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class KnownPixels:
    """Pixels with known values; all others are sampled to fit them.

    Source: Wang et al. 2022, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (arXiv
    2212.00490), eq. 8, for a mask of pixels: in every step, the known values replace those of the estimated image.
    """

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
        spread = 1.0 if math.isinf(sigma) else sigma / math.hypot(1, sigma)
        signal = 1 / math.hypot(1, sigma)
        if prediction_type == "flow":  # x_t = (1 − t)·x₀ + t·ε
            signal, spread = signal / (signal + spread), spread / (signal + spread)
        noise = (noisy - signal * self.values) / spread
        wanted = {
            "epsilon": noise,
            "sample": self.values,
            "flow": noise - self.values,
            "v_prediction": signal * noise - spread * self.values,
        }[prediction_type]
        channels = self.values.shape[1]
        corrected = torch.where(self.known, wanted, output[:, :channels])
        return torch.cat([corrected, output[:, channels:]], dim=1)


def find_whole_latents(known: Tensor, factor: int) -> Tensor:
    """Finds the latents of which all pixels are known: (N, H, W) bool → (N, ceil(H / factor), ceil(W / factor))."""
    unknown = (~known)[:, None].float()
    return F.max_pool2d(unknown, factor, ceil_mode=True)[:, 0] == 0

"""A network that knows its data: the exact denoiser of normally distributed images, for which all has a closed form."""

from types import SimpleNamespace

import torch
from torch import nn

EDGE = 8
LEVELS = torch.tensor([0.3, -0.2, 0.6])
"""Mean of each class, in what the network sees."""


class OneHot:
    """Stands for mask features."""

    def __init__(self, one_hot):
        self.one_hot = one_hot

    def select(self, rows):
        return OneHot(self.one_hot[rows])


class GaussianNetwork(nn.Module):
    """Images N(μ, s²·I + b²·11ᵀ): pixels vary by s about the level μ of their class, the whole image's brightness by b.

    Without a mask it takes all levels for 0.
    """

    def __init__(self, schedule, deviation=0.5, brightness=0.0, edge=EDGE):
        super().__init__()
        self.config = SimpleNamespace(
            image_size=edge, in_channels=1, num_classes=len(LEVELS), timestep_scale=1.0, learn_sigma=False
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.schedule, self.deviation, self.brightness = schedule, deviation, brightness
        self.passes = 0

    def compute_mask_features(self, one_hot, max_bytes, conditions=None):
        return OneHot(one_hot)

    def compute_mean(self, one_hot):
        return (one_hot * LEVELS[:, None, None]).sum(1, keepdim=True).double()

    def variances(self, pixels):
        """Of the pixels about the image's mean, and of the mean times √pixels: the eigenvalues of the covariance."""
        return self.deviation**2, self.deviation**2 + pixels * self.brightness**2

    def forward(self, noisy, timesteps, mask_features):
        self.passes += len(noisy)
        alphas = self.schedule.alphas_cumprod.double()
        position = timesteps.double().clamp(0, len(alphas) - 1)
        low = position.floor().long()
        share = position - low
        high = (low + 1).clamp(max=len(alphas) - 1)
        abar = ((1 - share) * alphas[low] + share * alphas[high])[:, None, None, None]
        mean = self.compute_mean(mask_features.one_hot)
        x = noisy.double()
        difference = x - abar.sqrt() * mean
        middle = difference.mean(dim=(1, 2, 3), keepdim=True)
        small, large = self.variances(noisy[0].numel())
        image = mean + abar.sqrt() * (
            small / (abar * small + 1 - abar) * (difference - middle) + large / (abar * large + 1 - abar) * middle
        )
        if self.schedule.config.prediction_type == "sample":
            return image.float()
        noise = (x - abar.sqrt() * image) / (1 - abar).sqrt()
        if self.schedule.config.prediction_type == "epsilon":
            return noise.float()
        return (abar.sqrt() * noise - (1 - abar).sqrt() * image).float()

    def solve(self, start, mean, abar):
        """Where the probability flow leads from `start` at ᾱ: μ + √λ·(x − √ᾱ·μ)/√(ᾱλ + 1 − ᾱ) along each eigenvector
        (Song et al. 2021, arXiv 2011.13456, for a linear score)."""
        difference = start.double() - abar**0.5 * mean
        middle = difference.mean(dim=(1, 2, 3), keepdim=True)
        small, large = self.variances(start[0].numel())
        return (
            mean
            + (small / (abar * small + 1 - abar)) ** 0.5 * (difference - middle)
            + (large / (abar * large + 1 - abar)) ** 0.5 * middle
        ).float()

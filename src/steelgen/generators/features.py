"""Features of an image from the networks of diffusion models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

NOISE_SEED = 0
"""Seed of the noise of all images."""


@dataclass(frozen=True)
class DenoisingNetwork:
    """A diffusion model's network, and how it sees an image without its mask."""

    network: nn.Module
    blocks: Sequence[nn.Module]
    """Blocks of the decoder, from coarse to fine; each returns features (N, C, h, w)."""
    stride: int
    """Edges of the images must be multiples of it."""
    num_train_timesteps: int
    denoise: Callable[[Tensor, int, int], Any]
    """Called with images (N, C, H, W) in [-1, 1] on the network's device, a timestep, and a seed; adds the seed's noise
    of that timestep and runs the network."""


class DiffusionFeatures(nn.Module):
    """Features of an image in the decoder of a frozen diffusion model (Baranchuk et al. 2022, arXiv 2112.03126).

    Args:
        source: the network.
        timesteps: timesteps at which it sees the image, each with the same noise for all images of a size.
        blocks: indices of `source.blocks`.
    """

    def __init__(self, source: DenoisingNetwork, timesteps: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.network = source.network.eval().requires_grad_(False)
        self.stride = source.stride
        self._denoise, self._timesteps = source.denoise, timesteps
        self._blocks = [source.blocks[index] for index in blocks]
        # Hooks belong to the network, which several threads may use.
        self._lock = Lock()

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) in [-1, 1] → maps (N, features, h, w), one for each resolution of the blocks."""
        found: list[Tensor] = []

        def keep(block: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(output)

        with self._lock:
            hooks = [block.register_forward_hook(keep) for block in self._blocks]
            try:
                for timestep in self._timesteps:
                    self._denoise(images, timestep, NOISE_SEED)
            finally:
                for hook in hooks:
                    hook.remove()
        sizes = dict.fromkeys(part.shape[2:] for part in found)
        return [torch.cat([part for part in found if part.shape[2:] == size], dim=1).float() for size in sizes]

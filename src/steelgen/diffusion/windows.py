"""Sampling of images larger than the network's: overlapping windows, blended at every step.

Source: Bar-Tal et al. 2023, "MultiDiffusion" (arXiv 2302.08113), eq. 5: the least-squares consensus of all windows is
the weighted mean of their steps. Weights fall towards a window's edge, where its context is smallest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class WindowLayout:
    """Square windows that cover an image.

    Args:
        height, width: of the image, each at least `edge`.
        edge: of the windows.
        overlap: minimum share of its edge that a window has in common with the next, in (0, 1).
        periodic: windows wrap around the image's edges.
        device: of the images and all tables.
    """

    def __init__(
        self, height: int, width: int, edge: int, overlap: float, periodic: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.shape = (height, width)
        self.edge = edge
        rows, columns = (_starts(extent, edge, overlap, periodic) for extent in self.shape)
        self.origins = [(top, left) for top in rows for left in columns]
        # Pixels of each window as flat positions in the image.
        tops, lefts = torch.tensor(self.origins).T[:, :, None] + torch.arange(edge)  # each (windows, edge)
        index = ((tops % height)[:, :, None] * width + (lefts % width)[:, None, :]).flatten(1)  # (windows, edge²)
        weights = _window_weights(edge)
        total = torch.zeros(height * width).index_add_(0, index.flatten(), weights.flatten().repeat(len(self.origins)))
        self._index, self._weights, self._total = (tensor.to(device) for tensor in (index, weights, total))

    def cut(self, image: Tensor) -> Tensor:
        """(N, C, H, W) → (N·windows, C, edge, edge), windows of an image in sequence."""
        channels = image.shape[1]
        pieces = image.flatten(2)[:, :, self._index]  # (N, C, windows, edge²)
        return pieces.transpose(1, 2).reshape(-1, channels, self.edge, self.edge)

    def blend(self, pieces: Tensor) -> Tensor:
        """(N·windows, C, edge, edge) → (N, C, H, W): the weighted mean of the windows at each pixel."""
        channels, device = pieces.shape[1], pieces.device
        weighted = (pieces * self._weights).view(-1, len(self.origins), channels, self.edge**2)
        total = torch.zeros(len(weighted), channels, math.prod(self.shape), device=device, dtype=pieces.dtype)
        total.index_add_(2, self._index.flatten(), weighted.transpose(1, 2).flatten(2))
        return (total / self._total).view(-1, channels, *self.shape)


def _starts(extent: int, edge: int, overlap: float, periodic: bool) -> list[int]:
    """Evenly spaced window origins along one axis."""
    stride = max(1, math.floor(edge * (1 - overlap)))
    if periodic:
        count = math.ceil(extent / stride)
        return [round(number * extent / count) for number in range(count)]
    count = math.ceil((extent - edge) / stride) + 1
    return [round(number * (extent - edge) / max(count - 1, 1)) for number in range(count)]


def _window_weights(edge: int) -> Tensor:
    """(edge, edge) in (0, 1]: sin² profile, 1 in the middle and nearly 0 at the edges."""
    profile = torch.sin(math.pi * (torch.arange(edge) + 0.5) / edge) ** 2 + 1e-3
    return profile[:, None] * profile[None, :]

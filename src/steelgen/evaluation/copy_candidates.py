"""A coarse level of many micrographs, by which the few that may contain an image are found in milliseconds.

A window has about 8 x 8 cells. Each value is the average over a triangle two cells wide, so that a window a quarter
cell beside the right place, or a few percent too large, still correlates more than a million others do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CELLS = 8
"""Cells along the edge of a window."""
_GROUP = 32
"""Micrographs compared at once; their products fit in a processor's cache."""


class CoarseLevel:
    """Smoothed copies of shrunk micrographs, compared with images at every half cell.

    Args:
        maps: (H, W) of each shrunk micrograph, of any sizes.
        size: edge of a window in pixels of the maps.
    """

    def __init__(self, maps: Sequence[Tensor], size: int) -> None:
        self._cell = max(1, size // _CELLS)
        shapes: dict[torch.Size, list[int]] = {}
        for index, part in enumerate(maps):
            shapes.setdefault(part.shape, []).append(index)
        chunks = [found[at : at + _GROUP] for found in shapes.values() for at in range(0, len(found), _GROUP)]
        self._groups = [(chunk, self._smooth(torch.stack([maps[index] for index in chunk]))) for chunk in chunks]
        self._count = len(maps)
        self._variances: dict[torch.Size, list[Tensor]] = {}

    def score(self, templates: Tensor, normalized: bool) -> Tensor:
        """Scores each micrograph by its window nearest to any of K templates, (K, h, w), at least as large as a window.

        Args:
            normalized: compare by correlation, otherwise by the distance after subtracting the means.

        Returns:
            (number of micrographs,) on the CPU: the negative correlation or the mean square difference, without the
            templates' share of it; infinite where templates do not fit.
        """
        kernels = self._smooth(templates)[:, :, :: self._cell, :: self._cell]
        kernels = kernels - kernels.mean(dim=(2, 3), keepdim=True)
        spread = kernels.square().mean(dim=(2, 3), keepdim=True).flatten().clamp(min=1e-6)
        shape = kernels.shape[2:]
        kernels = kernels / (spread.sqrt()[:, None, None, None] if normalized else 1) / shape.numel()
        extent = [(edge - 1) * self._cell + 1 for edge in shape]
        if shape not in self._variances:
            # Images of one search mostly have one size; tables of all sizes would pile up.
            self._variances = {shape: [self._tabulate_variances(smooth, shape, extent) for _, smooth in self._groups]}
        scores = torch.full((self._count,), torch.inf)
        for (chunk, smooth), variances in zip(self._groups, self._variances[shape], strict=True):
            if variances.numel() == 0:
                continue
            products = self._convolve(smooth, kernels.to(smooth))
            # A window without structure has a correlation of 0, not that of its rounding errors.
            found = products.div_(-variances.clamp(min=1e-2).sqrt()) if normalized else variances - 2 * products
            scores[chunk] = found.flatten(1).amin(dim=1).cpu()
        return scores

    def _convolve(self, smooth: Tensor, kernels: Tensor) -> Tensor:
        return F.conv2d(smooth, kernels, stride=max(1, self._cell // 2), dilation=self._cell)

    def _tabulate_variances(self, smooth: Tensor, shape: torch.Size, extent: list[int]) -> Tensor:
        """(B, 1, h, w) variances of all windows; empty where none fits."""
        if extent[0] > smooth.shape[2] or extent[1] > smooth.shape[3]:
            return smooth[:0]
        ones = torch.full((1, 1, *shape), 1 / shape.numel()).to(smooth)
        return (self._convolve(smooth.square(), ones) - self._convolve(smooth, ones).square()).clamp(min=0)

    def _smooth(self, maps: Tensor) -> Tensor:
        """(B, H, W) → (B, 1, H', W') averages over triangles, which are two boxes one after the other."""
        once = F.avg_pool2d(maps[:, None], self._cell, stride=1)
        return F.avg_pool2d(once, self._cell, stride=1)

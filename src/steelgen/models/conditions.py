"""Embedding of the conditions of an image: numbers and categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_FREQUENCIES = (0.5,)
"""Angular frequencies of the features of a scaled number, low ones: its effect is learned from a few micrographs and
must be smooth between them."""
_LIMIT = 4.0
"""Scaled numbers are clipped here, so that far outliers stay within the features' range."""


class ConditionEmbedding(nn.Module):
    """Sum of one embedding per condition, to be added to the time embedding.

    It starts at zero, so that a network without conditions is continued unchanged. A category is a random vector before
    a linear layer that starts at zero: a vector that itself started at zero would grow by the learning rate per step.

    Args:
        sizes: number of categories of each condition; 0 for a number.
        channels: length of the embedding.
    """

    def __init__(self, sizes: Sequence[int], channels: int) -> None:
        super().__init__()
        self._sizes = tuple(sizes)
        self.layers = nn.ModuleList()
        for size in sizes:
            last = nn.Linear(channels, channels, bias=False)
            nn.init.zeros_(last.weight)
            if size:
                self.layers.append(nn.Sequential(nn.Embedding(size, channels), last))
            else:
                first = nn.Linear(1 + 2 * len(_FREQUENCIES), channels)
                self.layers.append(nn.Sequential(first, nn.SiLU(), last))

    def forward(self, conditions: Tensor) -> Tensor:
        """Embeds conditions.

        Args:
            conditions: (N, K): scaled numbers and indices of categories; NaN is the null condition.

        Returns:
            (N, channels); a null condition contributes 0.
        """
        total = conditions.new_zeros(len(conditions), 1)
        for size, layer, column in zip(self._sizes, self.layers, conditions.unbind(1), strict=True):
            known = ~column.isnan()
            values = column.nan_to_num()
            if size:
                embedded = layer(values.long())
            else:
                values = values.clamp(-_LIMIT, _LIMIT)[:, None]
                angles = torch.cat([frequency * values for frequency in _FREQUENCIES], dim=1)
                embedded = layer(torch.cat([values, angles.sin(), angles.cos()], dim=1))
            total = total + embedded * known[:, None]
        return total

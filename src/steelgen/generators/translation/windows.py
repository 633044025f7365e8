"""Translation of images larger than the training crops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from steelgen.models.translation import (
    ALIGNMENT,
    Statistics,
    TranslationGenerator,
    fix_statistics,
    record_statistics,
)

_CORE = 256
"""Edge in pixels of the part of a window that is kept."""
_MAX_WINDOWS = 64
"""Windows that the statistics of the norms are measured in."""


def translate_in_windows(
    network: TranslationGenerator, images: Tensor, noise: Tensor | None, edge: int, core: int = _CORE
) -> Tensor:
    """Translates images of any size in windows, without seams.

    An instance norm of each window would shift its gray levels. Instead, all windows have the statistics of the whole
    image, measured in windows of the training crops' size, and overlap by more than the reach of the network.

    Args:
        images: (N, C, H, W), edges a multiple of ALIGNMENT and at least `edge`.
        noise: see `TranslationGenerator.forward`.
        edge: edge of the training crops.
        core: edge of the part of a window that is kept, a multiple of ALIGNMENT; affects only memory and speed.
    """
    statistics = measure_statistics(network, images, noise, edge)
    margin = ALIGNMENT * math.ceil(network.reach / ALIGNMENT)
    height, width = images.shape[-2:]
    translated = torch.empty_like(images)
    for top in range(0, height, core):
        for left in range(0, width, core):
            rows = slice(max(0, top - margin), min(height, top + core + margin))
            columns = slice(max(0, left - margin), min(width, left + core + margin))
            part = None if noise is None else noise[..., rows, columns]
            window = network(images[..., rows, columns], part, fix_statistics(statistics))
            assert isinstance(window, Tensor)
            inner = window[..., top - rows.start :, left - columns.start :][..., :core, :core]
            translated[..., top : top + core, left : left + core] = inner
    return translated


def measure_statistics(network: TranslationGenerator, images: Tensor, noise: Tensor | None, edge: int) -> Statistics:
    """Measures mean and variance of the features before each norm, over windows that cover the image."""
    found: list[Statistics] = []
    height, width = images.shape[-2:]
    for top, left in _place_windows(height, width, edge):
        rows, columns = slice(top, top + edge), slice(left, left + edge)
        statistics: Statistics = []
        part = None if noise is None else noise[..., rows, columns]
        network(images[..., rows, columns], part, record_statistics(statistics))
        found.append(statistics)
    merged = []
    for norm in zip(*found, strict=True):
        means, variances = (torch.stack(parts) for parts in zip(*norm, strict=True))
        merged.append((means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)))
    return merged


def _place_windows(height: int, width: int, edge: int) -> Iterator[tuple[int, int]]:
    """Yields the top left corners of windows that cover an image, or of evenly chosen ones where there are too many."""
    rows, columns = (
        [round(number * (length - edge) / max(1, count - 1)) for number in range(count)]
        for length, count in ((height, math.ceil(height / edge)), (width, math.ceil(width / edge)))
    )
    corners = [(top, left) for top in rows for left in columns]
    kept = min(len(corners), _MAX_WINDOWS)
    return (corners[number * len(corners) // kept] for number in range(kept))

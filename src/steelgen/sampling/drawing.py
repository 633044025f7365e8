"""A trained generator, put to work: masks and seeds in, grey levels out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.solver import AnySolverSection
from steelgen.data.crops import tensor_to_image
from steelgen.devices import autocast, pick_device
from steelgen.generators import Generator, load_generator


def prepare_generator(path: Path, channels_last: bool = True, compiled: bool = False) -> Generator:
    """Loads a generator onto the GPU, or the CPU where there is none, for drawing alone.

    Raises:
        InputError: if there is no generator, or it does not load.
    """
    generator = load_generator(path)
    network = generator.network.to(pick_device()).requires_grad_(False)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile()
    return generator


def draw_images(
    generator: Generator,
    masks: Sequence[NDArray[np.uint8]],
    seeds: Sequence[int],
    solver: AnySolverSection,
    mixed_precision: str = "no",
) -> list[NDArray[np.uint8]]:
    """Draws one image a mask.

    Args:
        generator: see `prepare_generator`.
        masks: N masks (H, W) of class indices, all of one size.
        seeds: N seeds.
        solver: how they are drawn.
        mixed_precision: no, bf16 or fp16.

    Returns:
        N images (H, W) or (H, W, 3) uint8.
    """
    device = next(generator.network.parameters()).device
    batch = torch.from_numpy(np.stack(masks).astype(np.int64))
    with autocast(mixed_precision, device):
        images = generator.draw(batch, seeds, solver)
    return [tensor_to_image(image) for image in images]

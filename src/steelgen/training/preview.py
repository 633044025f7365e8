"""Preview images during training, always for the same masks and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs, image_to_tensor, look_up_conditions, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.palette import color_mask
from steelgen.data.sheets import build_sheet
from steelgen.generators import DrawRequest, Generator, LatentGenerator, StagedGenerator
from steelgen.generators.drawing import draw_example
from steelgen.generators.manifold import draw_manifold
from steelgen.sampling.sheet import save_sheet

_TILE = 128
"""Smallest edge of an image in a preview of stages, px."""


class PreviewWriter:
    """Writes previews/step-<step>.png: masks of micrographs, or those that the generator makes, generated images and
    real images side by side.

    For a `LatentGenerator` it is the grid of its first two latents, for a `StagedGenerator` a row of stages per image.
    """

    def __init__(self, config: RunConfig, generator: Generator, micrographs: Micrographs) -> None:
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._solver = config.preview.solver
        self._across = config.preview.num_images
        crops = CropDataset(micrographs.inputs, generator.geometry, seed=0, augment=False)
        pairs = [crops.cut(number) for number in range(config.preview.num_images)]
        self._real = [image for image, _ in pairs]
        self._masks = np.stack([mask for _, mask in pairs])
        self._conditions = look_up_conditions(micrographs, generator.geometry, len(pairs))

    def draw(self, step: int) -> Path:
        """Writes the preview of a step and returns its path."""
        path = self._folder / f"step-{step:06d}.png"
        if isinstance(self._generator, LatentGenerator):
            save_image(path, draw_manifold(self._generator, self._across))
            return path
        seeds = list(range(len(self._real)))
        real = torch.stack([image_to_tensor(image) for image in self._real])
        if isinstance(self._generator, StagedGenerator):
            stages = self._generator.draw_stages(real, seeds)
            rows = [[tensor_to_image(image) for image in row] for row in zip(*stages, strict=True)]
            save_image(path, build_sheet(rows, tile=max(_TILE, self._generator.geometry.image_size)))
            return path
        masks = torch.from_numpy(self._masks.astype(np.int64))
        drawn = draw_example(
            self._generator, DrawRequest(seeds, masks, real, self._solver, conditions=self._conditions)
        )
        palette = self._generator.info.palette
        shown = self._masks if drawn.masks is None else drawn.masks.cpu().numpy().astype(np.uint8)
        if drawn.images is None:
            made, given = ([color_mask(mask, palette) for mask in each] for each in (shown, self._masks))
            save_sheet(path, [], made, given, palette=[])
        else:
            save_sheet(path, shown, [tensor_to_image(image) for image in drawn.images], self._real, palette)
        return path

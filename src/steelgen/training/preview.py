"""Preview images during training, always for the same masks and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs, look_up_conditions, tensor_to_image
from steelgen.data.images import save_image
from steelgen.generators import Generator, LatentGenerator, draw_for_masks
from steelgen.generators.manifold import draw_manifold
from steelgen.sampling.sheet import save_sheet


class PreviewWriter:
    """Writes previews/step-<step>.png: masks of micrographs, generated images and real images side by side; for a
    `LatentGenerator` the grid of its first two latents."""

    def __init__(self, config: RunConfig, generator: Generator, micrographs: Micrographs) -> None:
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._solver = config.preview.solver
        self._across = config.preview.num_images
        crops = CropDataset(micrographs, generator.geometry, seed=0, augment=False)
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
        masks = torch.from_numpy(self._masks.astype(np.int64))
        drawn = draw_for_masks(self._generator, masks, seeds, self._solver, conditions=self._conditions)
        images = [tensor_to_image(image) for image in drawn]
        save_sheet(path, self._masks, images, self._real, self._generator.info.palette)
        return path

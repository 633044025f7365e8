"""Pictures drawn during training, always from the same masks and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs, tensor_to_image
from steelgen.data.images import save_image
from steelgen.generators import Generator, LatentGenerator, draw_for_masks
from steelgen.generators.manifold import draw_manifold
from steelgen.sampling.sheet import save_sheet


class PreviewWriter:
    """Draws previews/step-<step>.png: mask, generated image and real image side by side; of a generator with latents,
    the grid of its first two.

    Args:
        config: the run's.
        generator: with the weights to be shown whenever `draw` is called.
        micrographs: where masks and real images come from; held-out ones are new to the generator.
    """

    def __init__(self, config: RunConfig, generator: Generator, micrographs: Micrographs) -> None:
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._solver = config.preview.solver
        self._across = config.preview.num_images
        crops = CropDataset(micrographs, generator.geometry, seed=0, augment=False)
        pairs = [crops.cut(number) for number in range(config.preview.num_images)]
        self._real = [image for image, _ in pairs]
        self._masks = np.stack([mask for _, mask in pairs])

    def draw(self, step: int) -> Path:
        """Draws the preview of a step and returns its path."""
        path = self._folder / f"step-{step:06d}.png"
        if isinstance(self._generator, LatentGenerator):
            save_image(path, draw_manifold(self._generator, self._across))
            return path
        seeds = list(range(len(self._real)))
        masks = torch.from_numpy(self._masks.astype(np.int64))
        drawn = draw_for_masks(self._generator, masks, seeds, self._solver)
        save_sheet(
            path,
            self._masks,
            [tensor_to_image(image) for image in drawn],
            self._real,
            self._generator.info.palette,
        )
        return path

"""Preview images during training, always for the same masks and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs, tensor_to_image
from steelgen.generators import Generator, draw_for_masks
from steelgen.sampling.sheet import save_sheet


class PreviewWriter:
    """Writes previews/step-<step>.png: masks of micrographs, generated images and real images side by side."""

    def __init__(self, config: RunConfig, generator: Generator, micrographs: Micrographs) -> None:
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._solver = config.preview.solver
        crops = CropDataset(micrographs, generator.geometry, seed=0, augment=False)
        pairs = [crops.cut(number) for number in range(config.preview.num_images)]
        self._real = [image for image, _ in pairs]
        self._masks = np.stack([mask for _, mask in pairs])

    def draw(self, step: int) -> Path:
        """Writes the preview of a step and returns its path."""
        seeds = list(range(len(self._real)))
        masks = torch.from_numpy(self._masks.astype(np.int64))
        images = [tensor_to_image(image) for image in draw_for_masks(self._generator, masks, seeds, self._solver)]
        path = self._folder / f"step-{step:06d}.png"
        save_sheet(path, self._masks, images, self._real, self._generator.info.palette)
        return path

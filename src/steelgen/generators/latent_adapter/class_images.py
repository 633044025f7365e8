"""Class images: what the base makes of the prompt without the token, for prior preservation.

Source: Ruiz et al. 2022, "DreamBooth" (arXiv 2208.12242), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steelgen.config.solver import SolverSection
from steelgen.data.crops import image_to_tensor, tensor_to_image
from steelgen.data.images import load_image, save_image
from steelgen.devices import in_evaluation_mode
from steelgen.errors import InputError
from steelgen.generators.latent_adapter.generator import LatentAdapter
from steelgen.generators.latent_adapter.prompts import tokenize
from steelgen.generators.latent_adapter.sampling import LatentInputs, sample_latents

_SOLVER = SolverSection(name="dpmsolver++", num_inference_steps=25, guidance_scale=7.5, guidance_interval=None)
"""The usual guidance of Stable Diffusion."""


@dataclass
class ClassImages:
    """The class images of a run, one per training crop."""

    count: int
    shape: tuple[int, int, int]
    """(C, S, S)."""
    folder: Path | None = None
    """Where they are; None, as when only memory is measured, gives gray ones."""

    def load(self, seed: int, number: int) -> Tensor:
        """Returns the class image of crop number `number`, (C, S, S) in [-1, 1], a function of (seed, number)."""
        if self.folder is None:
            return torch.zeros(self.shape)
        round_number, position = divmod(number, self.count)
        order = np.random.default_rng((seed, round_number, 7)).permutation(self.count)
        path = self.locate(int(order[position]))
        image = image_to_tensor(load_image(path))
        if image.shape != self.shape:
            raise InputError(
                f"{path}: is not an image of {self.shape[1]}x{self.shape[2]} px; delete it to make it again"
            )
        return image

    def locate(self, index: int) -> Path:
        """Path of image number `index`."""
        assert self.folder is not None
        return self.folder / f"{index:05d}.png"


def make_class_images(
    generator: LatentAdapter, images: ClassImages, seed: int, index: int, count: int, report: Callable[[str], None]
) -> None:
    """Makes the missing class images with the base alone; image i has the seed `seed` + i.

    Args:
        index, count: of this process; each makes its share.
        report: called with a line about what is made, by the first process.
    """
    missing = [number for number in range(index, images.count, count) if not images.locate(number).is_file()]
    if not missing:
        return
    if index == 0:
        report(f"making {images.count} class images of {generator.section.class_prompt!r} in {images.folder}")
    prompt = tokenize(generator.base.tokenizer, generator.section.class_prompt, "generator.class_prompt")
    with in_evaluation_mode(generator.network), generator.network.without_lora():
        for number in missing:
            edges = images.shape[1:]
            inputs = LatentInputs([seed + number], edges, prompt[None], generator.null_prompt, edges[0], None)
            image = sample_latents(generator.network, generator.base, inputs, _SOLVER)[0]
            if images.shape[0] == 1:
                image = image.mean(dim=0, keepdim=True)
            save_image(images.locate(number), tensor_to_image(image))

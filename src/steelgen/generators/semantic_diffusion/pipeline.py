"""The semantic U-Net as a pipeline of diffusers.

Annotations are not postponed: diffusers 0.35 checks the modules of a pipeline against them and cannot resolve strings.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from steelgen.diffusion.noise import NoiseSchedule
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from steelgen.models.semantic_unet import SemanticUNet


class SemanticDiffusionPipeline(DiffusionPipeline):
    """Loads the folder of a saved generator as diffusers does, by `from_pretrained(folder)`.

    steelgen itself uses `SemanticSampler`, because importing diffusers' pipelines takes a second.

    Args:
        unet: the network.
        scheduler: the noise schedule of its training.
    """

    unet: SemanticUNet
    scheduler: DDPMScheduler

    def __init__(self, unet: SemanticUNet, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, masks: Tensor, seeds: Sequence[int], *arguments: Any, **options: Any) -> Tensor:
        """Generates one image per mask; see `SemanticSampler`."""
        return SemanticSampler(self.unet, NoiseSchedule(self.scheduler))(masks, seeds, *arguments, **options)

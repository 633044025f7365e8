"""Drawing images: a diffusers pipeline around the semantic U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.noise import build_solver, randn_by_seed
from steelgen.models.semantic_unet import MaskFeatures, SemanticUNet


class SemanticDiffusionPipeline(DiffusionPipeline):
    """Draws micrographs for masks of class indices.

    Args:
        unet: the network.
        scheduler: the noise schedule that it was trained with.
    """

    def __init__(self, unet: SemanticUNet, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: str = "dpmsolver++",
        num_inference_steps: int = 20,
        guidance_scale: float = 1.5,
    ) -> Tensor:
        """Draws one image a mask.

        Args:
            masks: (N, H, W) int64 class indices; indices ≥ num_classes are ignored pixels.
            seeds: N seeds; an image depends on its mask and seed, not on the batch it is drawn in.
            solver: a name of `build_solver`.
            num_inference_steps: steps of the solver.
            guidance_scale: null + s·(conditional − null) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6 with s = 1 + w).

        Returns:
            (N, in_channels, H, W) float32, in the grey levels that the network was trained on.
        """
        config, device = self.unet.config, self.unet.device
        _n, height, width = masks.shape
        scheduler = build_solver(solver, self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=device)
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]

        features = self._compute_guided_features(masks.to(device), guidance_scale)
        image = randn_by_seed((config.in_channels, height, width), seeds, device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            network_input = scheduler.scale_model_input(image, timestep)
            prediction = self._predict(network_input, timestep, features, guidance_scale)
            image = scheduler.step(prediction, timestep, image, **_step_options(solver, rngs)).prev_sample
        return image

    def _compute_guided_features(self, masks: Tensor, guidance_scale: float) -> MaskFeatures:
        """SPADE's γ and β, computed once for all steps: conditional ones first, then null ones, as far as needed."""
        num_classes = self.unet.config.num_classes
        kept = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
        one_hot = one_hot_with_dropout(masks, num_classes, kept).to(self.unet.dtype)
        conditional = self.unet.compute_mask_features(one_hot)
        if guidance_scale == 1:
            return conditional
        # The null mask is the same for every image: one forward, shared by the batch.
        null = self.unet.compute_mask_features(torch.zeros_like(one_hot[:1]))
        pairs = zip(conditional.modulations, null.modulations, strict=True)
        return MaskFeatures(
            tuple(
                (
                    torch.cat([gamma, null_gamma.expand_as(gamma)]),
                    torch.cat([beta, null_beta.expand_as(beta)]),
                )
                for (gamma, beta), (null_gamma, null_beta) in pairs
            )
        )

    def _predict(self, image: Tensor, timestep: Tensor, features: MaskFeatures, guidance_scale: float) -> Tensor:
        """The network's guided prediction; both passes of guidance run in one batch."""
        guided = guidance_scale != 1
        network_input = torch.cat([image, image]) if guided else image
        timesteps = timestep.expand(len(network_input)).to(image.device)
        prediction = self.unet(network_input.to(self.unet.dtype), timesteps, mask_features=features).float()
        prediction = prediction[:, : self.unet.config.in_channels]
        if not guided:
            return prediction
        conditional, null = prediction.chunk(2)
        return null + guidance_scale * (conditional - null)


def _step_options(solver: str, rngs: list[torch.Generator]) -> dict[str, Any]:
    """Only the ancestral solver draws noise between steps; each image has its own source of it."""
    return {"generator": rngs} if solver == "ddpm" else {}

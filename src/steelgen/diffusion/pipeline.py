"""Drawing images: a diffusers pipeline around the semantic U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from steelgen.devices import map_on_single_threads
from steelgen.diffusion.flow import flow_to_velocity, scale_to_flow
from steelgen.diffusion.guidance import Guide, compute_guided_features, predict, split_variance
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.mask_noise import absorb_classes, draw_lifetimes
from steelgen.diffusion.noise import (
    NOISY_SOLVERS,
    Solver,
    alphas_cumprod_at,
    build_noise_sources,
    build_solver,
    randn_by_seed,
)
from steelgen.diffusion.windows import WindowLayout
from steelgen.models.semantic_unet import SemanticUNet

Predictor = Callable[[Tensor, Tensor, bool], Tensor]
"""(noisy images (N, C, H, W), timestep, guided) → what `guidance.predict` returns."""


class SemanticDiffusionPipeline(DiffusionPipeline):
    """Draws micrographs for masks of class indices.

    Args:
        unet: the network.
        scheduler: the noise schedule that it was trained with.
    """

    unet: SemanticUNet
    scheduler: DDPMScheduler

    def __init__(self, unet: SemanticUNet, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: str = "dpmsolver++",
        num_inference_steps: int = 12,
        *,
        noise: Tensor | None = None,
        start_images: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Draws one image a mask; see `draw_batch` for the arguments.

        On the CPU every image is drawn by itself: its kernels choose the order of their sums by the size of the batch,
        and an image would differ in the last bit from batch to batch. Images of the network's size are drawn side by
        side, one thread each; `mask_cache_bytes` is shared among these.
        """
        options |= {"solver": solver, "num_inference_steps": num_inference_steps}
        if self.unet.device.type != "cpu":
            return self.draw_batch(masks, seeds, noise=noise, start_images=start_images, moments=moments, **options)

        def row(tensor: Tensor | None, index: int) -> Tensor | None:
            return None if tensor is None else tensor[index : index + 1]

        def draw(index: int) -> Tensor:
            return self.draw_batch(
                masks[index : index + 1],
                [seeds[index]],
                noise=row(noise, index),
                start_images=row(start_images, index),
                moments=moments and (moments[0][index : index + 1], moments[1][index : index + 1]),
                **options,
            )

        in_windows = options.get("periodic") or masks.shape[1:] != (self.unet.config.image_size,) * 2
        if in_windows or self.unet._compiled_call_impl is not None:  # dynamo traces in one thread alone
            return torch.cat([draw(index) for index in range(len(seeds))])
        options["mask_cache_bytes"] = options.get("mask_cache_bytes", math.inf) / torch.get_num_threads()
        return torch.cat(map_on_single_threads(draw, len(seeds)))

    @torch.no_grad()
    def draw_batch(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: str = "dpmsolver++",
        num_inference_steps: int = 12,
        guidance_scale: float = 1.5,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        weak_unet: SemanticUNet | None = None,
        timestep_spacing: str = "power",
        spacing_power: float = 1.8,
        karras_sigmas: bool = False,
        mask_cache_bytes: float = math.inf,
        window_overlap: float = 0.5,
        periodic: bool = False,
        mask_noise: bool = False,
        noise: Tensor | None = None,
        start_images: Tensor | None = None,
        strength: float = 1.0,
        moments: tuple[Tensor, Tensor] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Tensor:
        """Draws one image a mask, all in one batch.

        Images larger than the network's image_size are drawn in overlapping windows (see `WindowLayout`).

        Args:
            masks: (N, H, W) int64 class indices; indices ≥ num_classes are ignored pixels.
            seeds: N seeds; an image depends on its mask and seed, not on the batch it is drawn in.
            solver, num_inference_steps, timestep_spacing, spacing_power, karras_sigmas: see `build_solver`.
            guidance_scale, guidance_interval, guidance_rescale, weak_unet: see `Guide`.
            mask_cache_bytes: memory for mask features that are kept over the steps.
            window_overlap, periodic: see `WindowLayout`.
            mask_noise: for networks trained with it: masks lose classes by the timestep (see `mask_noise`), and their
                features are computed anew at each step.
            noise: (N, C, H, W) standard normal noise to start from, instead of the seeds' own.
            start_images: (N, C, H, W) images to start from, noised to `strength` (Meng et al. 2022, arXiv 2108.01073).
            strength: where in the noise schedule drawing starts, as a share in (0, 1]; 1 leaves nothing of the images.
            moments: mean and standard deviation, each (N, C, H, W), of the images of which the first step holds a trace
                (see `add_trace`).
            value_range: limits of the grey levels, which a network that predicts noise is held to at each step: what
                it is wrong by, its first step would multiply by the ratio of the two steps' √ᾱ.

        Returns:
            (N, in_channels, H, W) float32, in the grey levels that the network was trained on.
        """
        config, device = self.unet.config, self.unet.device
        height, width = masks.shape[1:]
        guide = Guide(guidance_scale, guidance_interval, guidance_rescale, weak_unet)
        kept = torch.zeros(len(masks), dtype=torch.bool, device=device)
        one_hot = one_hot_with_dropout(masks.to(device), config.num_classes, kept).to(self.unet.dtype)
        layout = (guide, mask_cache_bytes, window_overlap, periodic)
        if mask_noise:
            predict_at = self._build_noisy_mask_predictor(one_hot, seeds, *layout)
        else:
            predict_at = self._build_predictor(one_hot, *layout)
        if self.scheduler.config.prediction_type == "flow":
            predict_at = self._predict_velocity_by(predict_at)
        elif self.scheduler.config.prediction_type == "epsilon" and value_range is not None:
            predict_at = self._clip_original(predict_at, value_range)

        steps = (num_inference_steps, timestep_spacing, spacing_power, karras_sigmas)
        learned_variance = solver == "ddpm" and config.learn_sigma
        laid_out = build_solver(solver, self.scheduler, *steps, device, learned_variance)
        scheduler = laid_out.scheduler
        if noise is None:
            noise = randn_by_seed((config.in_channels, height, width), seeds, device)
        first = 0 if start_images is None else self._find_start(laid_out, strength)
        timesteps, times = scheduler.timesteps[first:], laid_out.times[first:]
        if hasattr(scheduler, "set_begin_index"):
            # DDPM finds its place by the timestep; Karras et al.'s noise levels can lie so close that timesteps repeat.
            scheduler.set_begin_index(first)
        if moments is not None:
            image = add_trace(scheduler, moments[0].to(device), moments[1].to(device), noise.to(device))
        elif start_images is None or first == 0:
            image = noise.to(device) * scheduler.init_noise_sigma
        else:
            image = scheduler.add_noise(start_images.to(device), noise.to(device), timesteps[:1])
        options = {"generator": build_noise_sources(noise.shape[1:], seeds)} if solver in NOISY_SOLVERS else {}
        for timestep, time in zip(timesteps, times, strict=True):
            guided = guide.acts_at(self._sigma(time))
            prediction = predict_at(scheduler.scale_model_input(image, timestep), time, guided)
            if not learned_variance:
                prediction, _ = split_variance(prediction, config.in_channels)
            image = scheduler.step(prediction, timestep, image, **options).prev_sample
        return image

    def _find_start(self, solver: Solver, strength: float) -> int:
        """The place in a solver's timesteps that is nearest to t = strength·T."""
        shares = (solver.times[solver.starts].double() + 1) / self.scheduler.config.num_train_timesteps
        return solver.starts[int((shares - strength).abs().argmin())]

    def _predict_velocity_by(self, predict_flow: Predictor) -> Predictor:
        """The predictor of v that a predictor of the flow amounts to."""

        def predict_velocity(image: Tensor, timestep: Tensor, guided: bool) -> Tensor:
            alpha = alphas_cumprod_at(self.scheduler, float(timestep)).to(image)
            output = predict_flow(scale_to_flow(image, alpha), timestep, guided)
            flow, variance = split_variance(output, image.shape[1])
            return torch.cat([flow_to_velocity(image, flow, alpha), variance], dim=1)

        return predict_velocity

    def _clip_original(self, predict_noise: Predictor, limits: tuple[float, float]) -> Predictor:
        """The predictor of the noise that is left when the image that a noise prediction means is clipped."""

        def predict_clipped(image: Tensor, timestep: Tensor, guided: bool) -> Tensor:
            alpha = alphas_cumprod_at(self.scheduler, float(timestep)).to(image)
            signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
            noise, variance = split_variance(predict_noise(image, timestep, guided), image.shape[1])
            original = (image - spread * noise) / signal
            return torch.cat([(image - signal * original.clamp(*limits)) / spread, variance], dim=1)

        return predict_clipped

    def _build_noisy_mask_predictor(self, one_hot: Tensor, seeds: Sequence[int], *layout: Any) -> Predictor:
        """Like `_build_predictor`, for masks that lose classes by the timestep."""
        lifetimes = draw_lifetimes(seeds, *one_hot.shape[2:])
        total = self.scheduler.config.num_train_timesteps

        def predict_noisy(image: Tensor, timestep: Tensor, guided: bool) -> Tensor:
            noisy_mask = absorb_classes(one_hot, lifetimes, (timestep.to(one_hot.device) + 1) / total)
            return self._build_predictor(noisy_mask, *layout)(image, timestep, guided)

        return predict_noisy

    def _build_predictor(
        self, one_hot: Tensor, guide: Guide, max_bytes: float, overlap: float, periodic: bool
    ) -> Predictor:
        """The network's prediction for masks (N, num_classes, H, W), whose features are computed beforehand."""
        unet, edge = self.unet, self.unet.config.image_size
        count, _, height, width = one_hot.shape
        if (height, width) == (edge, edge) and not periodic:
            features = compute_guided_features(unet, one_hot, guide, max_bytes)
            return lambda image, timestep, guided: predict(unet, image, timestep, features, guide, guided)

        layout = WindowLayout(height, width, edge, overlap, periodic)
        # One window position of all images at a time bounds the memory of activations by that of a normal batch.
        windows = layout.cut(one_hot).unflatten(0, (count, -1)).unbind(1)
        share = max_bytes / len(windows)
        all_features = [compute_guided_features(unet, window, guide, share) for window in windows]

        def predict_windows(image: Tensor, timestep: Tensor, guided: bool) -> Tensor:
            pieces = layout.cut(image).unflatten(0, (count, -1)).unbind(1)
            predictions = [
                predict(unet, piece, timestep, features, guide, guided)
                for piece, features in zip(pieces, all_features, strict=True)
            ]
            return layout.blend(torch.stack(predictions, dim=1).flatten(0, 1))

        return predict_windows

    def _sigma(self, timestep: Tensor) -> float:
        """Noise level σ = √((1 − ᾱ)/ᾱ) of a timestep, infinite where no signal is left."""
        alpha = float(self.scheduler.alphas_cumprod[min(round(float(timestep)), len(self.scheduler.betas) - 1)])
        return math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf


def add_trace(scheduler: Any, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """What a solver starts from where the images have the given moments: √ᾱ·mean + √(ᾱ·deviation² + 1 − ᾱ)·noise.

    Source: Gao et al. 2024, "SCP-Diff" (arXiv 2403.09638): there x_T = √ᾱ·x̃ + √(1 − ᾱ)·ε with x̃ ~ N(mean, deviation²);
    two independent normal variables make one.

    Args:
        scheduler: a solver whose steps are set; ᾱ is that of its first, in its own scale.
        mean, deviation, noise: (N, C, H, W).
    """
    first, one, zero = scheduler.timesteps[:1], torch.ones(1, device=noise.device), torch.zeros(1, device=noise.device)
    signal, spread = scheduler.add_noise(one, zero, first), scheduler.add_noise(zero, one, first)
    return signal * mean + ((signal * deviation).square() + spread.square()).sqrt() * noise

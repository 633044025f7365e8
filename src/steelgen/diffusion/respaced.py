"""Drawing images over some steps of a schedule of one's own: ancestral or DDIM, with a learned or fixed variance.

The solvers of diffusers ignore a learned variance and lay their steps otherwise; these follow Nichol & Dhariwal 2021
(arXiv 2102.09672) and so give ISDM's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steelgen.config.solver import RespacedSolverSection
from steelgen.diffusion.flow import scale_to_flow
from steelgen.diffusion.guidance import Guide, compute_guided_features
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.noise import build_noise_sources, randn_by_seed
from steelgen.diffusion.reverse import (
    ReverseProcess,
    build_reverse_process,
    compute_betas,
    compute_reverse_step,
    select_timesteps,
    step_ancestral,
    step_ddim,
)
from steelgen.models.semantic_unet import SemanticUNet

Predictor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(x_t, network times (N,)) → (guided prediction, variance output or None), each (N, C, H, W)."""


def build_respaced_process(solver: RespacedSolverSection) -> ReverseProcess:
    """The reverse process that a solver section describes."""
    kept = select_timesteps(solver.num_train_timesteps, solver.respacing) if solver.respacing else None
    return build_reverse_process(compute_betas(solver.beta_schedule, solver.num_train_timesteps), kept)


def compute_network_times(process: ReverseProcess, solver: RespacedSolverSection) -> Tensor:
    """The time that the network is told at each kept step, (S,) float32: t, or t·1000/T."""
    times = process.timesteps.float()
    return times * (1000 / solver.num_train_timesteps) if solver.rescale_timesteps else times


def build_predictor(
    unet: SemanticUNet, one_hot_mask: Tensor, guidance_scale: float, max_bytes: float = math.inf
) -> Predictor:
    """The network with classifier-free guidance: null + s·(conditional − null), the variance from the conditional pass.

    Args:
        one_hot_mask: (N, num_classes, H, W).
        guidance_scale: s ≥ 1.
        max_bytes: memory for mask features that are kept over the steps.
    """
    channels = unet.config.in_channels
    features = compute_guided_features(unet, one_hot_mask, Guide(guidance_scale), max_bytes).strong

    def predict(noisy_image: Tensor, network_times: Tensor) -> tuple[Tensor, Tensor | None]:
        # In float64, so that the network's own scale is undone without a trace.
        times = network_times.double() / unet.config.timestep_scale
        passes = 1 if guidance_scale == 1 else 2
        repeated = torch.cat([noisy_image.to(unet.dtype)] * passes)
        output = unet(repeated, times.repeat(passes), mask_features=features).float()
        conditional, *null = output.chunk(passes)
        prediction, variance_output = conditional[:, :channels], conditional[:, channels:]
        if null:
            weak = null[0][:, :channels]
            prediction = weak + guidance_scale * (prediction - weak)
        return prediction, variance_output if unet.config.learn_sigma else None

    return predict


@torch.no_grad()
def draw_respaced(
    unet: SemanticUNet,
    prediction_type: str,
    masks: Tensor,
    seeds: Sequence[int],
    solver: RespacedSolverSection,
    value_range: tuple[float, float] = (-1.0, 1.0),
    noise: Tensor | None = None,
    start_images: Tensor | None = None,
    strength: float = 1.0,
    moments: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draws one image a mask, of the network's own size.

    Args:
        prediction_type: what the network predicts: "epsilon", "sample", "v_prediction" or "flow".
        masks: (N, H, W) int64 class indices; indices ≥ num_classes are ignored pixels.
        seeds: N seeds; an image depends on its mask and seed, not on the batch it is drawn in.
        value_range: the grey levels -1 and 1 as the network sees them; predicted images are clipped to it.
        noise: x_T, (N, C, H, W); by default drawn from the seeds.
        start_images, strength, moments: see `SemanticDiffusionPipeline.draw_batch`.

    Returns:
        (N, C, H, W) float32.
    """
    process, device = build_respaced_process(solver), masks.device
    times = compute_network_times(process, solver).to(device)
    kept = torch.zeros(len(masks), dtype=torch.bool, device=device)
    one_hot = one_hot_with_dropout(masks, unet.config.num_classes, kept).to(unet.dtype)
    predict = build_predictor(unet, one_hot, solver.guidance_scale, solver.mask_cache_gib * 2**30)

    shape = (unet.config.in_channels, *masks.shape[1:])
    image = randn_by_seed(shape, seeds, device) if noise is None else noise.to(device)
    sources = build_noise_sources(shape, seeds)
    steps = len(process) if start_images is None else max(1, round(len(process) * strength))
    if moments is not None:
        abar = float(process.alphas_cumprod[-1])
        mean, deviation = (moment.to(device) for moment in moments)
        image = abar**0.5 * mean + (abar * deviation.square() + 1 - abar).sqrt() * image
    elif start_images is not None and steps < len(process):
        abar = float(process.alphas_cumprod[steps - 1])
        image = abar**0.5 * start_images.to(device) + (1 - abar) ** 0.5 * image
    for index in reversed(range(steps)):
        network_input = image
        if prediction_type == "flow":
            network_input = scale_to_flow(image, process.alphas_cumprod[index].float())
        prediction, variance_output = predict(network_input, times[index].expand(len(image)))
        step = compute_reverse_step(
            process,
            torch.full((len(image),), index, device=device),
            image,
            prediction,
            variance_output,
            prediction_type,
            solver.variance,
            value_range if solver.clip_denoised else None,
        )
        if solver.name == "respaced_ddim":
            image = step_ddim(process, index, image, step)
        else:
            fresh = [torch.randn(shape, generator=source) for source in sources] if index else None
            image = step_ancestral(step, torch.stack(fresh).to(device) if fresh else None)
    return image

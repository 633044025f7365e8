"""Noise: schedules, solvers, and random numbers that belong to one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

_SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    "ddim": (DDIMScheduler, {}),
    "ddpm": (DDPMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}


def build_noise_schedule(
    num_train_timesteps: int, beta_schedule: str, prediction_type: str, zero_terminal_snr: bool
) -> DDPMScheduler:
    """The forward process q(x_t | x_0) of T steps.

    The linear schedule's ends are scaled by 1000/T, so that the noise at its end does not depend on T.
    """
    scale = 1000 / num_train_timesteps
    scaled = {"linear": (1e-4 * scale, 0.02 * scale), "scaled_linear": (0.00085 * scale, 0.012 * scale)}
    start, end = scaled.get(beta_schedule, (1e-4, 0.02))
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=start,
        beta_end=end,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",  # start at the noisiest step (Lin et al. 2023, arXiv 2305.08891, section 3.3)
        clip_sample=False,
    )


def build_solver(name: str, schedule: DDPMScheduler) -> Any:
    """A diffusers scheduler that solves the reverse process of `schedule`, by its name in the config."""
    kind, options = _SOLVERS[name]
    return kind.from_config(schedule.config, **options)


def compute_snr(schedule: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t) at each timestep, shape (N,)."""
    alphas = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    return alphas / (1 - alphas)


def randn_by_seed(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape) in which row i depends on seeds[i] alone.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)

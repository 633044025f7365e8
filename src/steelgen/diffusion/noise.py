"""Noise schedules, and conversions between the predictions of diffusion and of flow matching.

Flow matching (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003): the straight path
z_t = (1 − t)·x_0 + t·ε has the noise level σ = t/(1 − t). At the same σ a variance-preserving schedule has
x_t = √ᾱ·x_0 + √(1−ᾱ)·ε = z_t·(√ᾱ + √(1−ᾱ)). The network gets z_t and predicts u = ε − x_0; solvers work with x_t and v.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import Tensor

_SMALLEST_ALPHA = 2.0**-24
"""ᾱ that diffusers' σ-based solvers use in place of 0."""

Level = Tensor | float


class NoiseSchedule:
    """The forward process q(x_t | x_0) = N(√ᾱ_t·x_0, (1 − ᾱ_t)·I) of T steps.

    Its tables are float64 and on the host: in float32, 1 − ᾱ near 1e-6 is inexact and differs between processors, and
    diffusers moves its own table to the device of the last caller.

    Args:
        scheduler: diffusers' description of the schedule, saved with a generator and used to configure solvers.
    """

    def __init__(self, scheduler: DDPMScheduler) -> None:
        self.scheduler = scheduler
        self.config = scheduler.config
        self.betas = _compute_scheduler_betas(self.config)
        """(T,) float64."""
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        """ᾱ_t, (T,) float64."""
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def prediction_type(self) -> str:
        """The network's target: "epsilon", "sample", "v_prediction" or "flow"."""
        return self.config.prediction_type

    def compute_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) at timesteps (N,), each (N, 1, 1, 1) float32 on their device."""
        device = timesteps.device
        if device not in self._on_device:  # copied once per device, because copying makes the host wait
            alphas = self.alphas_cumprod
            self._on_device[device] = (alphas.sqrt().float().to(device), (1 - alphas).sqrt().float().to(device))
        signal, spread = self._on_device[device]
        return signal[timesteps, None, None, None], spread[timesteps, None, None, None]

    def add_noise(self, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε for images and noise (N, C, H, W) at timesteps (N,)."""
        signal, spread = self.compute_levels(timesteps)
        return signal * image + spread * noise

    @cached_property
    def log_sigmas(self) -> Tensor:
        """ln σ = ½ ln((1 − ᾱ)/ᾱ) of every timestep, (T,) float64, ascending and finite."""
        alphas = lift_zeros(self.alphas_cumprod)
        return 0.5 * ((1 - alphas) / alphas).log()

    def interpolate_levels(self, timestep: float) -> tuple[float, float]:
        """√ᾱ and √(1 − ᾱ) at a fractional timestep, interpolated in ln σ as in diffusers' solvers."""
        log_sigma = float(np.interp(timestep, np.arange(len(self)), self.log_sigmas.numpy()))
        return (1 + math.exp(2 * log_sigma)) ** -0.5, (1 + math.exp(-2 * log_sigma)) ** -0.5

    def sigma_at(self, timestep: float) -> float:
        """Noise level σ = √((1 − ᾱ)/ᾱ) of the nearest timestep; infinite at ᾱ = 0."""
        alpha = float(self.alphas_cumprod[min(round(timestep), len(self) - 1)])
        return math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf


def build_noise_schedule(
    num_train_timesteps: int, beta_schedule: str, prediction_type: str, zero_terminal_snr: bool
) -> NoiseSchedule:
    """Builds a noise schedule of T steps.

    The ends of linear schedules are scaled by 1000/T, so that the final noise level does not depend on T. "flow" has
    the noise levels σ = t/(1 − t) of rectified flow at t = 1/T … 1.
    """
    scale = 1000 / num_train_timesteps
    scaled = {"linear": (1e-4 * scale, 0.02 * scale), "scaled_linear": (0.00085 * scale, 0.012 * scale)}
    start, end = scaled.get(beta_schedule, (1e-4, 0.02))
    betas = compute_flow_betas(num_train_timesteps).tolist() if beta_schedule == "flow" else None
    return NoiseSchedule(
        DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=start,
            beta_end=end,
            beta_schedule=beta_schedule,
            trained_betas=betas,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=zero_terminal_snr,
            timestep_spacing="trailing",  # start at the noisiest step (Lin et al. 2023, arXiv 2305.08891, section 3.3)
            clip_sample=False,
        )
    )


def _compute_scheduler_betas(config: Any) -> Tensor:
    """β_1 … β_T of a DDPMScheduler's config in float64; diffusers computes them in float32."""
    total, kind = config.num_train_timesteps, config.beta_schedule
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
    elif kind == "squaredcos_cap_v2":
        betas = compute_cosine_betas(total)
    elif kind == "sigmoid":
        rise = torch.sigmoid(torch.linspace(-6, 6, total, dtype=torch.float64))
        betas = config.beta_start + (config.beta_end - config.beta_start) * rise
    else:
        power = {"linear": 1.0, "scaled_linear": 0.5}[kind]
        ends = (config.beta_start**power, config.beta_end**power)
        betas = torch.linspace(*ends, total, dtype=torch.float64) ** (1 / power)
    return rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def compute_cosine_betas(num_train_timesteps: int) -> Tensor:
    """β of the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17), at most 0.999; (T,) float64."""
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


def compute_flow_betas(num_train_timesteps: int) -> Tensor:
    """β of the unit-variance schedule whose signal-to-noise ratio is ((1 − t)/t)² at t = 1/T … 1; (T,) float64."""
    time = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = (1 - time) ** 2 / ((1 - time) ** 2 + time**2)
    return 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])


def lift_zeros(alphas_cumprod: Tensor) -> Tensor:
    """Replaces ᾱ = 0, whose σ is infinite, by the smallest ᾱ of diffusers' σ-based solvers."""
    return torch.where(alphas_cumprod > 0, alphas_cumprod, _SMALLEST_ALPHA)


def combine_target(prediction_type: str, image: Tensor, noise: Tensor, signal: Level, spread: Level) -> Tensor:
    """The network's target for an image and its noise: ε, x₀, the flow ε − x₀ (Lipman et al. 2022, arXiv 2210.02747),
    or the velocity v = √ᾱ ε − √(1−ᾱ) x₀ (Salimans & Ho 2022, arXiv 2202.00512)."""
    if prediction_type == "v_prediction":
        return signal * noise - spread * image
    return {"epsilon": noise, "sample": image, "flow": noise - image}[prediction_type]


def scale_to_flow(noisy_image: Tensor, signal: Level, spread: Level) -> Tensor:
    """z_t from x_t (N, C, H, W), √ᾱ_t and √(1 − ᾱ_t), which broadcast."""
    return noisy_image / (signal + spread)


def flow_to_velocity(noisy_image: Tensor, flow: Tensor, signal: Level, spread: Level) -> Tensor:
    """v = √ᾱ·ε − √(1−ᾱ)·x_0 from x_t and u = ε − x_0; arguments as in `scale_to_flow`."""
    return ((signal - spread) * noisy_image + flow) / (signal + spread)


def flow_to_original(noisy_image: Tensor, flow: Tensor, signal: Level, spread: Level) -> Tensor:
    """x_0 from x_t and u = ε − x_0; arguments as in `scale_to_flow`."""
    return (noisy_image - spread * flow) / (signal + spread)

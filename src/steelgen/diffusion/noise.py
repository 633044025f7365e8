"""Noise: schedules, solvers, and random numbers that belong to one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from steelgen.errors import InputError

_SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    # DPM-Solver++'s first-order step is DDIM's (Lu et al. 2022, arXiv 2211.01095, section 4.1), and this one goes from
    # each step to the next also where their number does not divide T; diffusers' own goes by T // steps.
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "ddpm": (DDPMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}
NOISY_SOLVERS = frozenset({"ddpm", "sde-dpmsolver++"})
"""Those that draw noise between steps."""
_SMALLEST_ALPHA = 2.0**-24
"""ᾱ that diffusers' σ-based solvers take for "no signal", whose σ would be infinite."""


class _HeunFromPureNoise(HeunDiscreteScheduler):
    """Heun's method with Euler's step as its first.

    The second half of Heun's step from σ₀ to σ₁ counts what the network changed its mind about by ½·σ₀/σ₁, which is a
    hundredfold where no signal is left at σ₀.
    """

    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self.timesteps, self.sigmas = (torch.cat([row[:1], row[2:]]) for row in (self.timesteps, self.sigmas))

    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        if self.step_index == 1:
            self.prev_derivative = self.dt = self.sample = None  # what it would take the next step for a second half by
        return result


def build_noise_schedule(
    num_train_timesteps: int, beta_schedule: str, prediction_type: str, zero_terminal_snr: bool
) -> DDPMScheduler:
    """The forward process q(x_t | x_0) of T steps.

    The linear schedule's ends are scaled by 1000/T, so that the noise at its end does not depend on T. "flow" has the
    noise levels σ = t/(1 − t) of rectified flow at t = 1/T … 1 (see `flow`).
    """
    scale = 1000 / num_train_timesteps
    scaled = {"linear": (1e-4 * scale, 0.02 * scale), "scaled_linear": (0.00085 * scale, 0.012 * scale)}
    start, end = scaled.get(beta_schedule, (1e-4, 0.02))
    betas = compute_flow_betas(num_train_timesteps).tolist() if beta_schedule == "flow" else None
    return DDPMScheduler(
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


def compute_flow_betas(num_train_timesteps: int) -> Tensor:
    """β of the unit-variance schedule whose signal-to-noise ratio is ((1 − t)/t)² at t = 1/T … 1; (T,) float64."""
    time = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = (1 - time) ** 2 / ((1 - time) ** 2 + time**2)
    return 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])


@dataclass(frozen=True)
class Solver:
    """A solver of the reverse process with its steps laid out."""

    scheduler: Any
    """diffusers' scheduler, which steps through its own `timesteps`."""
    times: Tensor
    """The timesteps of the training schedule that the network is told at each of these."""

    @property
    def starts(self) -> list[int]:
        """Places in `times` that drawing may start from: not the second halves of Heun's steps."""
        count = len(self.times)
        if isinstance(self.scheduler, _HeunFromPureNoise):
            return [0, *range(1, count, 2)]
        return list(range(0, count, self.scheduler.order))


def build_solver(
    name: str,
    schedule: DDPMScheduler,
    num_inference_steps: int,
    timestep_spacing: str = "power",
    spacing_power: float = 1.8,
    karras_sigmas: bool = False,
    device: torch.device | str = "cpu",
    learned_variance: bool = False,
) -> Solver:
    """A solver of the reverse process of `schedule`.

    Args:
        name: see `SolverSection.name`.
        timestep_spacing: power, trailing, linspace or leading.
        spacing_power: see `space_by_power`.
        karras_sigmas: space the noise levels by Karras et al. 2022 (arXiv 2206.00364, eq. 5) instead of by power.
        learned_variance: ddpm alone: its steps are given (N, 2·C, H, W), the prediction and the interpolation of the
            reverse variance (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15).

    Raises:
        InputError: if there are more steps than in the schedule.
    """
    total = schedule.config.num_train_timesteps
    if num_inference_steps > total:
        raise InputError(f"num_inference_steps {num_inference_steps}: the noise schedule has only {total} steps")
    kind, options = _SOLVERS[name]
    by_power = timestep_spacing == "power" and not karras_sigmas
    options = {**options, "timestep_spacing": "trailing" if timestep_spacing == "power" else timestep_spacing}
    if schedule.config.prediction_type == "flow":
        options["prediction_type"] = "v_prediction"  # what the pipeline turns it into
    if karras_sigmas:
        options["use_karras_sigmas"] = True
    kept = list(range(total))
    if by_power:
        kept = space_by_power(total, num_inference_steps, spacing_power)
    elif learned_variance:
        laid_out = kind.from_config(schedule.config, **options)
        laid_out.set_timesteps(num_inference_steps)
        kept = sorted(laid_out.timesteps.tolist())
    if learned_variance:
        options["variance_type"] = "learned_range"
    kept_alone = by_power or learned_variance
    if kept_alone:
        # A schedule of the kept steps alone, all of which are run: so every solver can have the spacing by power, and
        # the step that leads to the image itself adds no noise of a learned variance.
        options |= {"num_train_timesteps": len(kept), "rescale_betas_zero_snr": False}
    from_pure_noise = name == "heun" and schedule.config.rescale_betas_zero_snr
    if kept_alone or from_pure_noise:
        # Heun cannot rescale betas itself either: it gets them rescaled, with ᾱ_T as the others have it.
        alphas = _lift_zeros(schedule.alphas_cumprod).double()[kept]
        options["trained_betas"] = (1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])).numpy()
    if from_pure_noise:
        kind = _HeunFromPureNoise
    scheduler = kind.from_config(schedule.config, **options)
    scheduler.set_timesteps(num_inference_steps, device=device)
    timesteps = scheduler.timesteps
    return Solver(scheduler, torch.tensor(kept, device=device)[timesteps.long()] if kept_alone else timesteps)


def space_by_power(num_train_timesteps: int, num_inference_steps: int, power: float) -> list[int]:
    """The timesteps T·(i/n)^power − 1 for i = 1 … n, ascending and each once.

    1 spaces them evenly, from the last one on; 2 is DDIM's quadratic spacing (Song et al. 2020, arXiv 2010.02502,
    section D.3). The more power, the more steps at low noise, where texture is made.

    Args:
        num_inference_steps: n ≤ T.
    """
    total, count = num_train_timesteps, num_inference_steps
    places = [round(total * (number / count) ** power) - 1 for number in range(1, count + 1)]
    return [max(place, number) for number, place in enumerate(places)]


def compute_snr(schedule: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t) at each timestep, shape (N,)."""
    alphas = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    return alphas / (1 - alphas)


def compute_log_sigmas(schedule: DDPMScheduler) -> Tensor:
    """ln σ = ½ ln((1 − ᾱ)/ᾱ) of every timestep, (T,) float64, ascending; finite also where no signal is left."""
    alphas = _lift_zeros(schedule.alphas_cumprod).double()
    return 0.5 * ((1 - alphas) / alphas).log()


def _lift_zeros(alphas_cumprod: Tensor) -> Tensor:
    """As diffusers does in its σ-based solvers."""
    return torch.where(alphas_cumprod > 0, alphas_cumprod, _SMALLEST_ALPHA)


def alphas_cumprod_at(schedule: DDPMScheduler, timestep: float) -> Tensor:
    """ᾱ at a timestep that may lie between two, interpolated in ln σ as diffusers' solvers do; scalar float64."""
    log_sigmas = compute_log_sigmas(schedule)
    log_sigma = np.interp(timestep, np.arange(len(log_sigmas)), log_sigmas.numpy())
    return torch.sigmoid(torch.tensor(-2 * log_sigma))


def randn_by_seed(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape) in which row i depends on seeds[i] alone.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def build_noise_sources(shape: Sequence[int], seeds: Sequence[int]) -> list[torch.Generator]:
    """Where solvers that draw noise between steps take it from: one source an image, behind its `randn_by_seed`.

    A fresh source of the same seed would give the noise that the image started from once more.
    """
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    for source in sources:
        torch.randn(*shape, generator=source)
    return sources

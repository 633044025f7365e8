"""Solvers of the reverse process, from noise to image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from steelgen.config.solver import AnySolverSection, RespacedSolverSection, SolverSection
from steelgen.diffusion.guidance import split_variance
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule, flow_to_velocity, lift_zeros, scale_to_flow
from steelgen.diffusion.reverse import (
    build_reverse_process,
    compute_reverse_step,
    select_timesteps,
    step_ancestral,
    step_ddim,
)
from steelgen.errors import InputError
from steelgen.models.semantic_unet import SemanticUNet

_SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    # The first-order step of DPM-Solver++ is DDIM (Lu et al. 2022, arXiv 2211.01095, section 4.1). diffusers' own DDIM
    # steps by T // steps, which is wrong if the number of steps does not divide T.
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "ddpm": (DDPMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}
_NOISY = frozenset({"ddpm", "sde-dpmsolver++"})
"""Solvers that add noise between steps."""

NoiseSources = Sequence[torch.Generator]
"""Generators of the noise between steps, one per image, on the host."""
Predictor = Callable[[Tensor], Tensor]
"""Network input (N, C, H, W) → guided output, followed by a learned variance in the channels."""


class RespacedSolver:
    """Ancestral or DDIM steps over some steps of the section's own schedule, with a learned or fixed variance.

    Steps follow Nichol & Dhariwal 2021 (arXiv 2102.09672), unlike those of diffusers, and reproduce ISDM's numbers.
    `times` (S,), the network's time input at each step, and all other tables of a solver are on the host, where reading
    does not wait for the device; `sigmas` are the noise levels σ = √((1 − ᾱ)/ᾱ).

    Args:
        prediction_type: "epsilon", "sample", "v_prediction" or "flow".
        timestep_scale: factor that the network applies to its time input.
        value_range: limits that predicted images are clipped to.
    """

    def __init__(
        self,
        section: RespacedSolverSection,
        prediction_type: str,
        timestep_scale: float = 1.0,
        value_range: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        total = section.num_train_timesteps
        kept = select_timesteps(total, section.respacing) if section.respacing else None
        schedule = build_noise_schedule(total, section.beta_schedule, "epsilon", False)
        process = build_reverse_process(schedule.betas, kept)
        times = process.timesteps.float()
        if section.rescale_timesteps:
            times = times * (1000 / total)
        # In float64, so that the network's own scale cancels exactly.
        self.times = times.double().flip(0) / timestep_scale
        self.sigmas = ((1 - process.alphas_cumprod) / process.alphas_cumprod).sqrt().flip(0).tolist()
        self._section = section
        self._prediction_type = prediction_type
        self._clip_range = value_range if section.clip_denoised else None
        self._levels = [(float(abar**0.5), float((1 - abar) ** 0.5)) for abar in process.alphas_cumprod]
        self._process = process.to(torch.device(device))

    def start(self, noise: Tensor, images: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """Returns the first step and the noisy images (N, C, H, W) to start from.

        Args:
            noise: (N, C, H, W) standard normal.
            images: start images, noised to the step nearest to t = strength·T (Meng et al. 2022, arXiv 2108.01073).
                None, or a strength that leaves nothing of them, starts from pure noise.
        """
        total = len(self._levels)
        steps = total if images is None else max(1, round(total * strength))
        if images is None or steps == total:
            return 0, noise
        signal, spread = self._levels[steps - 1]
        return total - steps, signal * images + spread * noise

    def advance(self, image: Tensor, step: int, predict: Predictor, sources: NoiseSources) -> Tensor:
        """Takes step number `step`; steps must be taken in order."""
        index = len(self._levels) - 1 - step
        flows = self._prediction_type == "flow"
        output = predict(scale_to_flow(image, *self._levels[index]) if flows else image)
        prediction, variance = split_variance(output, image.shape[1])
        reverse = compute_reverse_step(
            self._process,
            torch.full((len(image),), index, device=image.device),
            image,
            prediction,
            variance if variance.shape[1] else None,
            self._prediction_type,
            self._section.variance,
            self._clip_range,
        )
        if self._section.name == "respaced_ddim":
            return step_ddim(self._process, index, image, reverse)
        fresh = [torch.randn(image.shape[1:], generator=source) for source in sources] if index else None
        return step_ancestral(reverse, torch.stack(fresh).to(image.device) if fresh else None)


class _HeunFromPureNoise(HeunDiscreteScheduler):
    """Heun's method with an Euler step first.

    The corrector of Heun's step from σ₀ to σ₁ multiplies changes of the prediction by ½·σ₀/σ₁, which is over a hundred
    at zero terminal SNR.
    """

    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self.timesteps, self.sigmas = (torch.cat([row[:1], row[2:]]) for row in (self.timesteps, self.sigmas))

    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        if self.step_index == 1:
            self.prev_derivative = self.dt = self.sample = None  # makes the next step a predictor, not a corrector
        return result


class DiffusersSolver:
    """A scheduler of diffusers on the network's noise schedule.

    Args:
        learned_variance: whether the network's output includes it; only ddpm uses it.
        value_range: limits of the gray levels. Images predicted via noise are clipped to them at each step, since the
            first step multiplies errors by the ratio of two steps' √ᾱ. None does not clip.

    Raises:
        InputError: if there are more steps than in the schedule.
    """

    def __init__(
        self,
        section: SolverSection,
        schedule: NoiseSchedule,
        learned_variance: bool = False,
        value_range: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        name = section.choose_name(schedule.prediction_type, learned_variance)
        self._learned_variance = learned_variance and name == "ddpm"
        self.scheduler, self.times = _lay_out(name, section, schedule, self._learned_variance)
        self.sigmas = [schedule.sigma_at(float(time)) for time in self.times]
        if name == "unipc":
            self.scheduler.sigmas = self.scheduler.sigmas.to(device)  # otherwise copied at each step
        self._noisy = name in _NOISY
        self._num_train_timesteps = len(schedule)
        self._flows = schedule.prediction_type == "flow"
        self._limits = value_range if schedule.prediction_type == "epsilon" else None
        self._levels = [schedule.interpolate_levels(float(time)) for time in self.times]

    def start(self, noise: Tensor, images: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """See `RespacedSolver.start`."""
        scheduler, first = self.scheduler, 0
        if images is not None:
            starts = list(range(0, len(self.times), scheduler.order))  # all but Heun's correctors
            if isinstance(scheduler, _HeunFromPureNoise):
                starts = [0, *range(1, len(self.times), 2)]
            shares = (self.times[starts].double() + 1) / self._num_train_timesteps
            first = starts[int((shares - strength).abs().argmin())]
        if hasattr(scheduler, "set_begin_index"):
            # Timesteps may repeat with karras_sigmas, so a lookup by timestep, as in DDPM, would be ambiguous.
            scheduler.set_begin_index(first)
        if images is None or first == 0:
            return first, noise * float(scheduler.init_noise_sigma)
        # Called with host tensors: diffusers would move its tables to the device of others for good.
        one, zero, timestep = torch.ones(1), torch.zeros(1), scheduler.timesteps[first : first + 1]
        signal, spread = (float(scheduler.add_noise(*pair, timestep)) for pair in ((one, zero), (zero, one)))
        return first, signal * images + spread * noise

    def advance(self, image: Tensor, step: int, predict: Predictor, sources: NoiseSources) -> Tensor:
        """See `RespacedSolver.advance`."""
        timestep = self.scheduler.timesteps[step]
        prediction = self._convert(self.scheduler.scale_model_input(image, timestep), step, predict)
        if not self._learned_variance:
            prediction, _ = split_variance(prediction, image.shape[1])
        options = {"generator": sources} if self._noisy else {}
        return self.scheduler.step(prediction, timestep, image, **options).prev_sample

    def _convert(self, image: Tensor, step: int, predict: Predictor) -> Tensor:
        """Converts the network's output to the scheduler's prediction type, clipped to the gray levels."""
        signal, spread = self._levels[step]
        if self._flows:
            flow, variance = split_variance(predict(scale_to_flow(image, signal, spread)), image.shape[1])
            return torch.cat([flow_to_velocity(image, flow, signal, spread), variance], dim=1)
        if self._limits is None:
            return predict(image)
        noise, variance = split_variance(predict(image), image.shape[1])
        original = ((image - spread * noise) / signal).clamp(*self._limits)
        return torch.cat([(image - signal * original) / spread, variance], dim=1)


def build_solver(
    section: AnySolverSection, schedule: NoiseSchedule, unet: SemanticUNet, value_range: tuple[float, float] | None
) -> RespacedSolver | DiffusersSolver:
    """Builds the solver of a section for a network and the noise schedule of its training.

    Args:
        value_range: limits of the gray levels in the network's units.
    """
    config, device = unet.config, unet.device
    if isinstance(section, RespacedSolverSection):
        return RespacedSolver(section, schedule.prediction_type, config.timestep_scale, value_range, device)
    return DiffusersSolver(section, schedule, config.learn_sigma, value_range, device)


def _lay_out(name: str, section: SolverSection, schedule: NoiseSchedule, learned_variance: bool) -> tuple[Any, Tensor]:
    """Builds a scheduler with its steps set; also returns their timesteps in the training schedule."""
    total, count = len(schedule), section.num_inference_steps
    if count > total:
        raise InputError(f"num_inference_steps {count}: the noise schedule has only {total} steps")
    kind, options = _SCHEDULERS[name]
    spacing, chosen = section.timestep_spacing, _choose_timesteps(section, schedule)
    options = {**options, "timestep_spacing": "trailing" if spacing in ("power", "logistic") else spacing}
    if schedule.prediction_type == "flow":
        options["prediction_type"] = "v_prediction"  # see DiffusersSolver._convert
    if section.karras_sigmas:
        options["use_karras_sigmas"] = True
    kept = chosen or list(range(total))
    if learned_variance and not chosen:
        laid_out = kind.from_config(schedule.config, **options)
        laid_out.set_timesteps(count)
        kept = sorted(laid_out.timesteps.tolist())
    if learned_variance:
        options["variance_type"] = "learned_range"
    kept_alone = chosen is not None or learned_variance
    if kept_alone:
        # A schedule of only the kept steps, all of which are run: this gives every solver our spacings, and the
        # last step adds no noise of a learned variance.
        options |= {"num_train_timesteps": len(kept), "rescale_betas_zero_snr": False}
    from_pure_noise = name == "heun" and schedule.config.rescale_betas_zero_snr
    if kept_alone or from_pure_noise:
        # diffusers' Heun cannot rescale betas: pass them rescaled, with the ᾱ_T of the other solvers.
        alphas = lift_zeros(schedule.alphas_cumprod)[kept]
        options["trained_betas"] = (1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])).numpy()
    if from_pure_noise:
        kind = _HeunFromPureNoise
    scheduler = kind.from_config(schedule.config, **options)
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps
    return scheduler, torch.tensor(kept)[timesteps.long()] if kept_alone else timesteps


def _choose_timesteps(section: SolverSection, schedule: NoiseSchedule) -> list[int] | None:
    """Returns the timesteps of spacings that diffusers does not have, ascending; None for the others."""
    if section.karras_sigmas:
        return None
    count = section.num_inference_steps
    if section.timestep_spacing == "power":
        return space_by_power(len(schedule), count, section.spacing_power)
    if section.timestep_spacing == "logistic":
        return space_by_logistic(schedule.log_sigmas, count, section.logistic_mean, section.logistic_scale)
    return None


def space_by_power(num_train_timesteps: int, num_inference_steps: int, power: float) -> list[int]:
    """Returns the timesteps T·(i/n)^power − 1 for i = 1 … n ≤ T, ascending and without repeats.

    Power 1 is even spacing, 2 is DDIM's quadratic spacing (Song et al. 2020, arXiv 2010.02502, section D.3). Larger
    powers put more steps at low noise, where texture forms.
    """
    total, count = num_train_timesteps, num_inference_steps
    places = [round(total * (number / count) ** power) - 1 for number in range(1, count + 1)]
    return [max(place, number) for number, place in enumerate(places)]


def space_by_logistic(log_sigmas: Tensor, num_inference_steps: int, mean: float, scale: float) -> list[int]:
    """Returns the timesteps with ln σ nearest to mean + scale·ln(i/(n − i)), i = 1 … n − 1 < T, and the noisiest one.

    The quantiles of a logistic distribution of ln σ; ascending and without repeats. With mean 0 and scale 1 the steps
    are even in the time t = σ/(1 + σ) of rectified flow (Liu et al. 2022, arXiv 2209.03003).

    Args:
        log_sigmas: (T,) ascending.
    """
    total, count = len(log_sigmas), num_inference_steps
    shares = torch.arange(1, count, dtype=torch.float64) / count
    bounds = (log_sigmas[1:] + log_sigmas[:-1]) / 2
    places = [*torch.searchsorted(bounds, mean + scale * torch.logit(shares)).tolist(), total - 1]
    for index in range(1, count):
        places[index] = max(places[index], places[index - 1] + 1)
    return [min(place, total - count + index) for index, place in enumerate(places)]

"""Solvers of the reverse process: how an image is stepped from noise to gray levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
from steelgen.diffusion.flow import flow_to_velocity, scale_to_flow
from steelgen.diffusion.guidance import split_variance
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule, lift_zeros
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
    # DPM-Solver++'s first-order step is DDIM's (Lu et al. 2022, arXiv 2211.01095, section 4.1), and this one goes from
    # each step to the next also where their number does not divide T; diffusers' own goes by T // steps.
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "ddpm": (DDPMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}
_NOISY = frozenset({"ddpm", "sde-dpmsolver++"})
"""Those that draw noise between steps."""

NoiseSources = Sequence[torch.Generator]
"""On the host, one an image: what noise between steps is drawn from."""
Predictor = Callable[[Tensor], Tensor]
"""What the network sees of noisy images, (N, C, H, W) → its guided output, with its learned variance behind."""


class Solver(Protocol):
    """A solver with its steps laid out; all of its tables lie on the host, where reading them waits for nothing."""

    times: Tensor
    """(S,) what the network is told at each step, on the host."""
    sigmas: list[float]
    """Noise level σ = √((1 − ᾱ)/ᾱ) at each step."""

    def start(self, noise: Tensor, images: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """The first step to take, and the noisy images (N, C, H, W) to take it from.

        Args:
            noise: (N, C, H, W) standard normal.
            images: start from these, noised to the step nearest to t = strength·T (Meng et al. 2022,
                arXiv 2108.01073); None, or a strength that leaves nothing of them, starts from noise alone.
        """
        ...

    def advance(self, image: Tensor, step: int, predict: Predictor, sources: NoiseSources) -> Tensor:
        """Takes step number `step`; steps are taken in order."""
        ...


def build_solver(
    section: AnySolverSection,
    schedule: NoiseSchedule,
    unet: SemanticUNet,
    value_range: tuple[float, float] | None,
) -> Solver:
    """Lays out the steps of a solver.

    Args:
        section: which, and how many.
        schedule: what the network was trained with.
        unet: the network.
        value_range: limits of the gray levels, as the network sees them.
    """
    config, device = unet.config, unet.device
    if isinstance(section, RespacedSolverSection):
        return RespacedSolver(section, schedule.prediction_type, config.timestep_scale, value_range, device)
    return DiffusersSolver(section, schedule, config.learn_sigma, value_range, device)


class RespacedSolver:
    """Ancestral or DDIM steps over some steps of a schedule of its own, with a learned or fixed variance.

    The solvers of diffusers lay their steps otherwise; these follow Nichol & Dhariwal 2021 (arXiv 2102.09672) and so
    give ISDM's numbers.

    Args:
        section: the steps.
        prediction_type: what the network predicts: "epsilon", "sample", "v_prediction" or "flow".
        timestep_scale: what the network itself multiplies times by.
        value_range: limits that predicted images are clipped to.
        device: of the images.
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
        # In float64, so that the network's own scale is undone without a trace.
        self.times = times.double().flip(0) / timestep_scale
        self.sigmas = ((1 - process.alphas_cumprod) / process.alphas_cumprod).sqrt().flip(0).tolist()
        self._section = section
        self._prediction_type = prediction_type
        self._clip_range = value_range if section.clip_denoised else None
        self._levels = [(float(abar**0.5), float((1 - abar) ** 0.5)) for abar in process.alphas_cumprod]
        self._process = process.to(torch.device(device))

    def start(self, noise: Tensor, images: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """See `Solver.start`."""
        total = len(self._levels)
        steps = total if images is None else max(1, round(total * strength))
        if images is None or steps == total:
            return 0, noise
        signal, spread = self._levels[steps - 1]
        return total - steps, signal * images + spread * noise

    def advance(self, image: Tensor, step: int, predict: Predictor, sources: NoiseSources) -> Tensor:
        """See `Solver.advance`."""
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


class DiffusersSolver:
    """One of diffusers' schedulers, on the schedule of the network.

    Args:
        section: which, and its steps.
        schedule: what the network was trained with.
        learned_variance: whether the network's output has it; ddpm alone makes use of it.
        value_range: limits of the gray levels, which a network that predicts noise is held to at each step: what it is
            wrong by, its first step would multiply by the ratio of the two steps' √ᾱ. None: no limits.
        device: of the images.

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
            self.scheduler.sigmas = self.scheduler.sigmas.to(device)  # else it copies some of them at each step
        self._noisy = name in _NOISY
        self._num_train_timesteps = len(schedule)
        self._flows = schedule.prediction_type == "flow"
        self._limits = value_range if schedule.prediction_type == "epsilon" else None
        self._levels = [schedule.interpolate_levels(float(time)) for time in self.times]

    @property
    def starts(self) -> list[int]:
        """Steps that drawing may start from: not the second halves of Heun's."""
        count = len(self.times)
        if isinstance(self.scheduler, _HeunFromPureNoise):
            return [0, *range(1, count, 2)]
        return list(range(0, count, self.scheduler.order))

    def start(self, noise: Tensor, images: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """See `Solver.start`."""
        scheduler, first = self.scheduler, 0
        if images is not None:
            shares = (self.times[self.starts].double() + 1) / self._num_train_timesteps
            first = self.starts[int((shares - strength).abs().argmin())]
        if hasattr(scheduler, "set_begin_index"):
            # DDPM finds its place by the timestep; Karras et al.'s noise levels can lie so close that timesteps repeat.
            scheduler.set_begin_index(first)
        if images is None or first == 0:
            return first, noise * float(scheduler.init_noise_sigma)
        # Asked for two numbers on the host: of tensors elsewhere, diffusers would move its tables there for good.
        one, zero, timestep = torch.ones(1), torch.zeros(1), scheduler.timesteps[first : first + 1]
        signal, spread = (float(scheduler.add_noise(*pair, timestep)) for pair in ((one, zero), (zero, one)))
        return first, signal * images + spread * noise

    def advance(self, image: Tensor, step: int, predict: Predictor, sources: NoiseSources) -> Tensor:
        """See `Solver.advance`."""
        timestep = self.scheduler.timesteps[step]
        prediction = self._convert(self.scheduler.scale_model_input(image, timestep), step, predict)
        if not self._learned_variance:
            prediction, _ = split_variance(prediction, image.shape[1])
        options = {"generator": sources} if self._noisy else {}
        return self.scheduler.step(prediction, timestep, image, **options).prev_sample

    def _convert(self, image: Tensor, step: int, predict: Predictor) -> Tensor:
        """The network's output in terms of what the scheduler takes, and within the limits of gray levels."""
        signal, spread = self._levels[step]
        if self._flows:
            flow, variance = split_variance(predict(scale_to_flow(image, signal, spread)), image.shape[1])
            return torch.cat([flow_to_velocity(image, flow, signal, spread), variance], dim=1)
        if self._limits is None:
            return predict(image)
        noise, variance = split_variance(predict(image), image.shape[1])
        original = ((image - spread * noise) / signal).clamp(*self._limits)
        return torch.cat([(image - signal * original) / spread, variance], dim=1)


def _lay_out(name: str, section: SolverSection, schedule: NoiseSchedule, learned_variance: bool) -> tuple[Any, Tensor]:
    """A scheduler with its steps set, and the timesteps of the training schedule that these are."""
    total, count = len(schedule), section.num_inference_steps
    if count > total:
        raise InputError(f"num_inference_steps {count}: the noise schedule has only {total} steps")
    kind, options = _SCHEDULERS[name]
    by_power = section.timestep_spacing == "power" and not section.karras_sigmas
    spacing = "trailing" if section.timestep_spacing == "power" else section.timestep_spacing
    options = {**options, "timestep_spacing": spacing}
    if schedule.prediction_type == "flow":
        options["prediction_type"] = "v_prediction"  # what the solver turns it into
    if section.karras_sigmas:
        options["use_karras_sigmas"] = True
    kept = list(range(total))
    if by_power:
        kept = space_by_power(total, count, section.spacing_power)
    elif learned_variance:
        laid_out = kind.from_config(schedule.config, **options)
        laid_out.set_timesteps(count)
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
        alphas = lift_zeros(schedule.alphas_cumprod)[kept]
        options["trained_betas"] = (1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])).numpy()
    if from_pure_noise:
        kind = _HeunFromPureNoise
    scheduler = kind.from_config(schedule.config, **options)
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps
    return scheduler, torch.tensor(kept)[timesteps.long()] if kept_alone else timesteps


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

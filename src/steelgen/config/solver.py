"""How an image is drawn from noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from steelgen.config.base import MAX_TIMESTEPS, Section
from steelgen.errors import InputError

_NoiseLevel = Annotated[float, Field(ge=0, le=1e9)]


class SamplingSection(Section):
    """What all solvers share: memory, and images larger than the network's."""

    mask_cache_gib: float = Field(4.0, ge=0, le=10**6)
    """Memory for the mask features that are computed once for all steps; what does not fit is recomputed."""
    window_overlap: float = Field(0.5, ge=0.1, le=0.9)
    """For images larger than the network's: share by which neighboring windows overlap at least."""
    window_memory_gib: float = Field(8.0, gt=0, le=10**6)
    """GPU memory for the windows that run in one batch; on a CPU each runs by itself."""
    periodic: bool = False
    """Windows also reach across the image's edges, so that it can be tiled; for simulation cells."""


class SolverSection(SamplingSection):
    """The solver of the reverse process and its guidance."""

    name: Literal["auto", "dpmsolver++", "sde-dpmsolver++", "unipc", "ddim", "ddpm", "euler", "heun"] = "auto"
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095), the same with fresh noise at each step (sde), UniPC (arXiv
    2302.04867), DDIM (arXiv 2010.02502), ancestral DDPM (arXiv 2006.11239), Euler, or Heun's second-order method
    (Karras et al. 2022, arXiv 2206.00364). auto: networks that predict noise are drawn by solvers whose fresh noise
    covers what they mistake, ddpm where they have learned its variance (ISDM's), else sde-dpmsolver++; all others by
    dpmsolver++."""
    num_inference_steps: int = Field(12, ge=1, le=MAX_TIMESTEPS)
    """Steps of the solver; each costs one network evaluation (Heun: two), twice that under guidance."""
    timestep_spacing: Literal["power", "trailing", "linspace", "leading"] = "power"
    """Where the steps lie: closer together at low noise, where texture is made (power), or evenly; all but leading ones
    start at the noisiest (Lin et al. 2023, arXiv 2305.08891, table 2)."""
    spacing_power: float = Field(1.8, ge=1, le=4)
    """Exponent for power: steps at T·(i/n)^spacing_power; 1 is trailing, 2 DDIM's quadratic spacing."""
    karras_sigmas: bool = False
    """Space the steps by Karras et al. 2022 (arXiv 2206.00364, eq. 5) instead of by power; for dpmsolver++, unipc,
    euler, heun."""
    guidance_scale: float = Field(1.5, ge=0, le=1000)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): null + s·(conditional − null).
    1 is the plain conditional model, above it the mask is obeyed more strictly."""
    guidance_interval: tuple[_NoiseLevel, _NoiseLevel] | None = (0.2, 2.0)
    """Guide only at noise levels σ between these two, σ = √((1 − ᾱ)/ᾱ); the other steps cost one evaluation
    (Kynkäänniemi et al. 2024, arXiv 2404.07724). null guides every step, which takes from the variety of the images."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """Pull the guided image's contrast back to the conditional one's (Lin et al. 2023, arXiv 2305.08891, eq. 15-16)."""
    autoguidance: Path | None = None
    """Guide away from this weaker generator, an early checkpoint of the same run, instead of the null mask
    (Karras et al. 2024, arXiv 2406.02507)."""

    @model_validator(mode="after")
    def _check(self) -> SolverSection:
        if self.karras_sigmas and self.name in ("ddim", "ddpm"):
            raise ValueError(f"karras_sigmas has no meaning for the solver {self.name!r}")
        if self.guidance_interval and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(
                f"guidance_interval {list(self.guidance_interval)}: must be two noise levels, the lower first"
            )
        return self

    def choose_name(self, prediction_type: str, learned_variance: bool) -> str:
        """The solver for a network that predicts this, and perhaps a variance: `name`, or what auto stands for."""
        if self.name != "auto":
            return self.name
        if prediction_type != "epsilon":
            return "dpmsolver++"
        return "ddpm" if learned_variance else "sde-dpmsolver++"


def check_schedule(beta_schedule: str, num_train_timesteps: int) -> None:
    """Raises InputError where a schedule of so few steps is impossible: a linear one's last β is 0.02·1000/T."""
    last = {"linear": 20, "scaled_linear": 12}.get(beta_schedule, 0)
    if last >= num_train_timesteps:
        raise InputError(
            f"a {beta_schedule} noise schedule of {num_train_timesteps} steps would end at beta "
            f"{last / 1000:g}·1000/{num_train_timesteps} = {last / num_train_timesteps:.3g}, and a beta of 1 or more "
            f"leaves no signal to step from; use at least {last + 1} steps, the cosine schedule, or fewer sampling "
            "steps by respacing"
        )


class RespacedSolverSection(SamplingSection):
    """Ancestral or DDIM steps over a schedule of their own, with learned or fixed variances (Nichol & Dhariwal 2021,
    arXiv 2102.09672); this is how ISDM draws, number by number."""

    name: Literal["respaced_ddpm", "respaced_ddim"]
    """Ancestral sampling, or deterministic DDIM (Song et al. 2020, arXiv 2010.02502)."""
    num_train_timesteps: int = Field(1000, ge=1, le=MAX_TIMESTEPS)
    """Steps of the schedule before respacing (ISDM's diffusion_steps)."""
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """Linear, with ends scaled by 1000/num_train_timesteps (at least 21 of them), or cosine."""
    respacing: str = ""
    """The steps that are run: "" all, "50" that many, "10,20" so many in each equal part, "ddim50" by whole strides."""
    rescale_timesteps: bool = False
    """The network is told t·1000/num_train_timesteps instead of t."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """The reverse variance of networks that do not learn it: β or β̃ (Ho et al. 2020, section 3.2)."""
    clip_denoised: bool = True
    """Clip the predicted image to the range of gray levels in every step."""
    guidance_scale: float = Field(1.5, ge=1, le=1000)
    """Classifier-free guidance: null + s·(conditional − null); 1 is the plain conditional model."""

    @model_validator(mode="after")
    def _check_schedule(self) -> RespacedSolverSection:
        check_schedule(self.beta_schedule, self.num_train_timesteps)
        return self


def _is_respaced(value: Any) -> str:
    name = value.get("name", "") if isinstance(value, dict) else getattr(value, "name", "")
    return "respaced" if str(name).startswith("respaced_") else "solver"


AnySolverSection = Annotated[
    Annotated[SolverSection, Tag("solver")] | Annotated[RespacedSolverSection, Tag("respaced")],
    Discriminator(_is_respaced),
]

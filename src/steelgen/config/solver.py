"""Config sections of the solvers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from steelgen.config.base import MAX_TIMESTEPS, Section
from steelgen.errors import InputError

_NoiseLevel = Annotated[float, Field(ge=0, le=1e9)]


class SamplingSection(Section):
    """Memory limits, and images larger than the network's."""

    mask_cache_gib: float = Field(4.0, ge=0, le=10**6)
    """Memory for mask features cached over all steps, in GiB; features that do not fit are recomputed."""
    window_overlap: float = Field(0.5, ge=0.1, le=0.9)
    """Minimum overlap of neighboring windows, as a share of their edge, for images larger than the network's."""
    window_memory_gib: float = Field(8.0, gt=0, le=10**6)
    """GPU memory for windows that run in one batch, in GiB; on a CPU each window runs by itself."""
    periodic: bool = False
    """Windows wrap around the image's edges, so that it can be tiled; for simulation cells."""
    coarse_noise: float = Field(0.0, ge=0, le=10)
    """Noise added to the coarse images of a refining generator, at most the max_noise of its training: larger values
    hide more errors of the coarse images, and keep less of them."""
    coarse_error: float = Field(0.0, ge=0, le=10)
    """Standard deviation of the noise that a refining generator takes for part of the coarse images, without any being
    added; with coarse_noise, at most the max_noise of its training counts. It removes grain of which generated coarse
    images have too much; 0.1 is the default in `stages`."""
    consistency: bool = True
    """Images of a refining generator, when shrunk, equal their coarse images; false, the default in `stages`, lets it
    correct the errors of generated ones."""


REFINING_FIELDS = ("coarse_noise", "coarse_error", "consistency")
"""Fields of solver sections that only refining generators have a use for."""


class SolverSection(SamplingSection):
    """The solver of the reverse process and its guidance."""

    name: Literal["auto", "dpmsolver++", "sde-dpmsolver++", "unipc", "ddim", "ddpm", "euler", "heun"] = "auto"
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095), its SDE variant (sde), UniPC (arXiv 2302.04867), DDIM (arXiv
    2010.02502), ancestral DDPM (arXiv 2006.11239), Euler, or Heun (Karras et al. 2022, arXiv 2206.00364). auto selects,
    for networks that predict noise, a solver whose added noise hides their errors: ddpm with a learned variance (as in
    ISDM), else sde-dpmsolver++; for all other networks dpmsolver++."""
    num_inference_steps: int = Field(12, ge=1, le=MAX_TIMESTEPS)
    """Solver steps; each costs one network evaluation (Heun: two), twice as many with guidance."""
    timestep_spacing: Literal["logistic", "power", "trailing", "linspace", "leading"] = "logistic"
    """Spacing of the steps: by noise level, densest where structure forms and with some at high noise, where brightness
    is decided (logistic); denser at low noise, where texture forms (power); or even. All but leading start at the
    noisiest timestep (Lin et al. 2023, arXiv 2305.08891, table 2)."""
    logistic_mean: float = Field(-0.8, ge=-20, le=20)
    """Mean of ln σ for logistic spacing, whose n steps are at ln σ = logistic_mean + logistic_scale·ln(i/(n − i))."""
    logistic_scale: float = Field(1.6, gt=0, le=20)
    """Scale of ln σ for logistic spacing; larger values put more steps at the highest and lowest noise levels."""
    spacing_power: float = Field(1.8, ge=1, le=4)
    """Exponent of the power spacing T·(i/n)^spacing_power; 1 equals trailing, 2 is DDIM's quadratic spacing."""
    karras_sigmas: bool = False
    """Noise levels of Karras et al. 2022 (arXiv 2206.00364, eq. 5) instead of timestep_spacing; for dpmsolver++, unipc,
    euler, heun."""
    brightness: Literal["measured", "network"] = "measured"
    """Where semantic diffusion takes the mean gray level of an image from. measured: at random from its distribution
    in the training micrographs, given the area fractions of the mask; not with conditions, start images, inpainting,
    an autoencoder, or in a refining stage. network: from the network, whose images are too much alike in it."""
    guidance_scale: float = Field(2.0, ge=0, le=1000)
    """Scale s of classifier-free guidance, null + s·(conditional − null) (Ho & Salimans 2022, arXiv 2207.12598).
    1 disables guidance; larger values follow the mask more strictly."""
    guidance_interval: tuple[_NoiseLevel, _NoiseLevel] | None = (0.1, 1.0)
    """Noise levels σ = √((1 − ᾱ)/ᾱ) with guidance, low and high; the other steps cost one evaluation (Kynkäänniemi et
    al. 2024, arXiv 2404.07724). null guides every step, which reduces diversity."""
    guide_pairs: bool = True
    """Guides the images of pairs by their masks, too, while both are generated (joint diffusion)."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """Rescales the contrast of guided predictions to the conditional one's (Lin et al. 2023, arXiv 2305.08891,
    eq. 15-16); 0 disables it, 1 matches it."""
    autoguidance: Path | None = None
    """A weaker generator to guide away from, such as an early checkpoint of the same run, instead of the null mask
    (Karras et al. 2024, arXiv 2406.02507)."""

    @model_validator(mode="after")
    def _check(self) -> SolverSection:
        if self.karras_sigmas and self.name in ("ddim", "ddpm"):
            raise ValueError(f"karras_sigmas: not applicable to the solver {self.name!r}")
        if self.guidance_interval and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(
                f"guidance_interval {list(self.guidance_interval)}: must be two noise levels, the lower first"
            )
        return self

    def choose_name(self, prediction_type: str, learned_variance: bool) -> str:
        """Returns `name`, or the solver that auto selects for a network."""
        if self.name != "auto":
            return self.name
        if prediction_type != "epsilon":
            return "dpmsolver++"
        return "ddpm" if learned_variance else "sde-dpmsolver++"


def check_schedule(beta_schedule: str, num_train_timesteps: int) -> None:
    """Raises InputError if a linear schedule has too few steps: its last β is 0.02·1000/T."""
    last = {"linear": 20, "scaled_linear": 12}.get(beta_schedule, 0)
    if last >= num_train_timesteps:
        raise InputError(
            f"a {beta_schedule} noise schedule of {num_train_timesteps} steps would end at beta "
            f"{last / 1000:g}·1000/{num_train_timesteps} = {last / num_train_timesteps:.3g}, must be below 1; use at "
            f"least {last + 1} steps, the cosine schedule, or respacing for fewer sampling steps"
        )


class RespacedSolverSection(SamplingSection):
    """Ancestral or DDIM steps on a separate schedule, with learned or fixed variances (Nichol & Dhariwal 2021,
    arXiv 2102.09672); reproduces ISDM's sampling exactly."""

    name: Literal["respaced_ddpm", "respaced_ddim"]
    """Ancestral sampling, or deterministic DDIM (Song et al. 2020, arXiv 2010.02502)."""
    num_train_timesteps: int = Field(1000, ge=1, le=MAX_TIMESTEPS)
    """Steps of the schedule before respacing (ISDM's diffusion_steps)."""
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """Linear, with ends scaled by 1000/num_train_timesteps (at least 21 of them), or cosine."""
    respacing: str = ""
    """Steps to run: "" all, "50" 50 of them, "10,20" so many in each equal section, "ddim50" 50 with an integer
    stride."""
    rescale_timesteps: bool = False
    """The network's time input is t·1000/num_train_timesteps instead of t."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """Reverse variance for networks that do not learn it: β or β̃ (Ho et al. 2020, section 3.2)."""
    clip_denoised: bool = True
    """Clips the predicted image to the range of gray levels in every step."""
    guidance_scale: float = Field(1.5, ge=1, le=1000)
    """Scale s of classifier-free guidance, null + s·(conditional − null); 1 disables guidance."""

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

"""The discrete reverse process p(x_{t-1} | x_t) on any subset of a schedule's steps.

Source: Ho et al. 2020 (arXiv 2006.11239); Nichol & Dhariwal 2021 (arXiv 2102.09672) for learned variances and fewer
steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from itertools import accumulate, repeat

import torch
from torch import Tensor

from steelgen.diffusion.noise import flow_to_original
from steelgen.errors import InputError


@dataclass(frozen=True)
class ReverseProcess:
    """The kept steps of a schedule, numbered 0 … S-1 from the least noisy; tensors are float64 of length S."""

    timesteps: Tensor
    """int64; number of each kept step in the full schedule."""
    betas: Tensor
    """β between neighboring kept steps."""
    alphas_cumprod: Tensor
    """ᾱ_t."""
    alphas_cumprod_prev: Tensor
    """ᾱ_{t-1}; 1 at the first step."""

    def __len__(self) -> int:
        return len(self.betas)

    def to(self, device: torch.device) -> ReverseProcess:
        """Returns a copy on a device."""
        return ReverseProcess(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def posterior_variance(self) -> Tensor:
        """β̃_t = β_t (1 − ᾱ_{t-1}) / (1 − ᾱ_t) (Ho et al. 2020, eq. 7); 0 at the first step."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @property
    def log_variance_small(self) -> Tensor:
        """log β̃_t; the first step, where β̃ is 0, takes the second's."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2], variance[1:]]).log() if len(self) > 1 else self.betas.log()

    @property
    def log_variance_large(self) -> Tensor:
        """log β_t; the first step takes the second's β̃ for a better likelihood (Ho et al. 2020, section 3.2)."""
        return torch.cat([self.log_variance_small[:1], self.betas.log()[1:]])


@dataclass(frozen=True)
class ReverseStep:
    """Mean and log-variance of p(x_{t-1} | x_t) and the predicted x_0; each (N, C, H, W)."""

    mean: Tensor
    log_variance: Tensor
    pred_original: Tensor


def select_timesteps(num_train_timesteps: int, respacing: str) -> list[int]:
    """Returns the steps kept by a respacing, in ascending order.

    Args:
        respacing: "" keeps all; "50" spreads 50 over the whole range; "10,20" splits the range into equal sections and
            spreads 10 over the first, 20 over the second (Nichol & Dhariwal 2021, section 4); "ddim50" takes every k-th
            step from 0 with the integer k that gives 50 (Song et al. 2020, arXiv 2010.02502).

    Raises:
        InputError: if the text does not parse, a section is too short, or no integer stride gives the count.
    """
    total = num_train_timesteps
    text = respacing.strip()
    if not text:
        return list(range(total))
    try:
        counts = [int(part) for part in text.removeprefix("ddim").split(",")]
    except ValueError:
        raise InputError(f'timestep_respacing {respacing!r}: must be "", "50", "10,20" or "ddim50"') from None
    if min(counts) < 1:
        raise InputError(f"timestep_respacing {respacing!r}: every count must be at least 1")
    if text.startswith("ddim"):
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == counts[0]:
                return list(range(0, total, stride))
        raise InputError(f"timestep_respacing {respacing!r}: no integer stride over {total} steps gives {counts[0]}")
    kept: list[int] = []
    first = 0
    for number, count in enumerate(counts):
        length = total // len(counts) + (number < total % len(counts))
        if count > length:
            raise InputError(
                f"timestep_respacing {respacing!r}: section {number + 1} of {len(counts)} has only {length} steps, "
                f"not {count}"
            )
        spacing = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed step by step, so that halves round as in the original code.
        kept += [first + round(position) for position in accumulate(repeat(spacing, count - 1), initial=0.0)]
        first += length
    return sorted(set(kept))


def build_reverse_process(betas: Tensor, timesteps: list[int] | None = None) -> ReverseProcess:
    """Builds the reverse process over some steps of a schedule with `betas` (T,); None keeps all steps."""
    alphas_cumprod = torch.cumprod(1 - betas.double(), dim=0)
    kept = torch.arange(len(betas)) if timesteps is None else torch.tensor(timesteps)
    alphas_cumprod = alphas_cumprod[kept]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    # If all steps are kept, the second formula gives betas with rounding errors.
    kept_betas = betas.double() if timesteps is None else 1 - alphas_cumprod / previous
    return ReverseProcess(kept, kept_betas, alphas_cumprod, previous)


def compute_reverse_step(
    process: ReverseProcess,
    steps: Tensor,
    noisy_image: Tensor,
    prediction: Tensor,
    variance_output: Tensor | None,
    prediction_type: str,
    variance: str = "fixed_large",
    clip_range: tuple[float, float] | None = None,
) -> ReverseStep:
    """Computes p(x_{t-1} | x_t) from the network's prediction.

    Args:
        process: on the device of the images.
        steps: (N,) int64, each image's step in `process`.
        noisy_image: x_t, (N, C, H, W).
        prediction: the network's ε, x_0, v or ε − x_0, (N, C, H, W).
        variance_output: learned interpolation of the log-variance between β̃ at -1 and β at 1, (N, C, H, W) (Nichol &
            Dhariwal 2021, eq. 15); None uses a fixed variance.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow".
        variance: the fixed variance: "fixed_large" (β) or "fixed_small" (β̃).
        clip_range: limits of the predicted image, or None.
    """
    at = partial(_look_up, steps=steps, like=noisy_image)
    original = predict_original(process, steps, noisy_image, prediction, prediction_type)
    if clip_range is not None:
        original = original.clamp(*clip_range)
    abar, abar_prev, beta = process.alphas_cumprod, process.alphas_cumprod_prev, process.betas
    # Ho et al. 2020, eq. 7
    mean = (
        at(beta * abar_prev.sqrt() / (1 - abar)) * original
        + at((1 - abar_prev) * (1 - beta).sqrt() / (1 - abar)) * noisy_image
    )
    if variance_output is not None:
        share = (variance_output + 1) / 2
        log_variance = share * at(beta.log()) + (1 - share) * at(process.log_variance_small)
    else:
        table = process.log_variance_large if variance == "fixed_large" else process.log_variance_small
        log_variance = at(table).expand_as(mean)
    return ReverseStep(mean, log_variance, original)


def predict_original(
    process: ReverseProcess, steps: Tensor, noisy_image: Tensor, prediction: Tensor, prediction_type: str
) -> Tensor:
    """x_0 from x_t and the network's ε, x_0, v or ε − x_0; shapes as in `compute_reverse_step`."""
    at, abar = partial(_look_up, steps=steps, like=noisy_image), process.alphas_cumprod
    if prediction_type == "sample":
        return prediction
    if prediction_type == "flow":
        return flow_to_original(noisy_image, prediction, at(abar.sqrt()), at((1 - abar).sqrt()))
    if prediction_type == "v_prediction":
        return at(abar.sqrt()) * noisy_image - at((1 - abar).sqrt()) * prediction
    return at((1 / abar).sqrt()) * noisy_image - at((1 / abar - 1).sqrt()) * prediction


def step_ancestral(step: ReverseStep, noise: Tensor | None) -> Tensor:
    """Samples x_{t-1} from p(x_{t-1} | x_t); without noise, as at the last step, its mean."""
    return step.mean if noise is None else step.mean + (0.5 * step.log_variance).exp() * noise


def step_ddim(process: ReverseProcess, index: int, noisy_image: Tensor, step: ReverseStep) -> Tensor:
    """Deterministic DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with σ = 0) from kept step `index`."""
    abar, abar_prev = process.alphas_cumprod[index], process.alphas_cumprod_prev[index]
    # The noise that is consistent with the clipped image.
    noise = ((1 / abar).sqrt().float() * noisy_image - step.pred_original) / (1 / abar - 1).sqrt().float()
    return abar_prev.sqrt().float() * step.pred_original + (1 - abar_prev).sqrt().float() * noise


def _look_up(table: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """Indexes a table (S,) by the steps (N,) of images: (N, 1, 1, 1) of their dtype."""
    return table[steps].to(like.dtype)[:, None, None, None]

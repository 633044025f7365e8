"""The training loss of mask-conditioned diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from steelgen.diffusion.flow import scale_to_flow
from steelgen.diffusion.loss_history import LossHistory
from steelgen.diffusion.mask_noise import absorb_classes, draw_lifetimes
from steelgen.diffusion.noise import compute_snr, randn_by_seed
from steelgen.diffusion.reverse import build_reverse_process
from steelgen.diffusion.timesteps import LogNormalTimesteps
from steelgen.diffusion.variational import compute_variational_bound

_GOLDEN_RATIO = 0.6180339887498949


def draw_fractions(numbers: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each crop number (N,), spread evenly over consecutive crops; float64."""
    offset = np.random.default_rng((seed, 2)).random()
    return (offset + numbers.double() * _GOLDEN_RATIO) % 1


def draw_timesteps(numbers: Tensor, seed: int, num_train_timesteps: int) -> Tensor:
    """A timestep for each crop number, spread evenly over consecutive crops.

    The additive golden-ratio sequence: uniform like independent draws but of lower variance, in the spirit of the
    low-discrepancy sampler of Kingma et al. 2021 (arXiv 2107.00630, appendix I.1), and a pure function of the number.

    Args:
        numbers: (N,) int64.

    Returns:
        (N,) int64 in [0, num_train_timesteps).
    """
    fraction = draw_fractions(numbers, seed)
    return (fraction * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def crop_seeds(numbers: Tensor, seed: int) -> list[int]:
    """A 63-bit random seed for each crop number."""
    return [int(np.random.default_rng((seed, int(number), 3)).integers(2**63)) for number in numbers]


def one_hot_with_dropout(mask: Tensor, num_classes: int, dropped: Tensor) -> Tensor:
    """One-hot encodes class indices; ignored pixels and dropped masks are all zero.

    Args:
        mask: (N, H, W) int64; indices ≥ num_classes are ignored pixels.
        dropped: (N,) bool; True gives the null mask.

    Returns:
        (N, num_classes, H, W) float32.
    """
    one_hot = F.one_hot(mask.clamp(max=num_classes), num_classes + 1)[..., :num_classes]
    return one_hot.permute(0, 3, 1, 2).float() * ~dropped[:, None, None, None]


def compute_target(schedule: DDPMScheduler, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict: ε, x₀, the flow ε − x₀ (Lipman et al. 2022, arXiv 2210.02747), or the velocity
    v = √ᾱ ε − √(1−ᾱ) x₀ (Salimans & Ho 2022, arXiv 2202.00512)."""
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        return schedule.get_velocity(image, noise, timesteps)
    return {"epsilon": noise, "sample": image, "flow": noise - image}[kind]


def compute_loss_weights(schedule: DDPMScheduler, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
    """Min-SNR-γ weights (Hang et al. 2023, arXiv 2303.09556): min(SNR, γ) in x₀'s units, (N,)."""
    if snr_gamma is None:
        return torch.ones(timesteps.shape, device=timesteps.device)
    snr = compute_snr(schedule, timesteps)
    weight = snr.clamp(max=snr_gamma)
    return {
        "epsilon": weight / snr,
        "v_prediction": weight / (snr + 1),
        "flow": weight / (snr.sqrt() + 1) ** 2,
        "sample": weight,
    }[schedule.config.prediction_type]


class CropLosses(NamedTuple):
    """What a batch of N crops cost."""

    losses: Tensor
    """(N,) float32, as they are minimised."""
    positions: Tensor
    """(N,) in [0, 1): where in the noise schedule each crop's timestep lies; 0 is the clean end."""


@dataclass(frozen=True)
class LossOptions:
    """What is minimised; see `NoiseSection`."""

    snr_gamma: float | None = None
    objective: str = "simple"
    """"simple": the squared error, with `vlb_weight` times the bound where the variance is learned; "variational": the
    bound L_vlb alone, in bits per value."""
    vlb_weight: float = 0.001
    value_range: tuple[float, float] = (-1.0, 1.0)
    """What grey levels 0 and 255 are in the images."""
    mask_noise: bool = False


def compute_diffusion_loss(
    network: nn.Module,
    schedule: DDPMScheduler,
    batch: dict[str, Tensor],
    num_classes: int,
    seed: int,
    mask_dropout: float,
    options: LossOptions,
    distribution: LossHistory | LogNormalTimesteps | None = None,
    positions: Tensor | None = None,
) -> CropLosses:
    """Denoising loss of each crop; timestep, noise and mask dropout are functions of (seed, crop number) alone.

    With a learned variance it is L_simple + λ·L_vlb (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16), the mean held
    fixed in the second term, and L_vlb estimated as T times that of the one timestep drawn.

    Args:
        distribution: draws the timesteps, where not all alike; a `LossHistory` by the losses so far, which it notes.
            Then the loss depends on these too.
        batch: `image` (N, C, H, W) in [-1, 1], `mask` (N, H, W) int64, `number` (N,) int64; for networks that see them
            also `instance_edges` (N, H, W) bool and `augmentation` (N, 6).
        positions: (N,) in [0, 1), the timesteps to take as shares of all; None draws them.
    """
    image, numbers = batch["image"], batch["number"].cpu()
    device = image.device
    seeds = crop_seeds(numbers, seed)
    noise = randn_by_seed(image.shape[1:], seeds, device)
    num_timesteps = schedule.config.num_train_timesteps
    importance = None
    if positions is not None:
        timesteps = (positions * num_timesteps).long().to(device)
    elif distribution is None:
        timesteps = draw_timesteps(numbers, seed, num_timesteps).to(device)
    else:
        drawn, importance = distribution.draw(draw_fractions(numbers, seed))
        timesteps = drawn.to(device)

    noisy_image = schedule.add_noise(image, noise, timesteps)
    shares = (timesteps + 1) / num_timesteps if options.mask_noise else None
    one_hot_mask = _draw_mask_input(batch, num_classes, seeds, mask_dropout, shares)
    network_input = noisy_image
    if schedule.config.prediction_type == "flow":
        network_input = scale_to_flow(noisy_image, schedule.alphas_cumprod.to(device)[timesteps, None, None, None])
    told = {"augmentation": batch["augmentation"]} if "augmentation" in batch else {}
    output = network(network_input, timesteps, one_hot_mask, **told).float()
    prediction, *variance_output = output.split(image.shape[1], dim=1)

    def bound(prediction: Tensor) -> Tensor:
        process = build_reverse_process(schedule.betas)
        kind, learned = schedule.config.prediction_type, variance_output[0] if variance_output else None
        return len(process) * compute_variational_bound(
            process, timesteps, image, noisy_image, prediction, learned, kind, options.value_range
        )

    if options.objective == "variational":
        loss = bound(prediction)
    else:
        target = compute_target(schedule, image, noise, timesteps)
        error = (prediction - target).square().mean(dim=(1, 2, 3))
        loss = error * compute_loss_weights(schedule, timesteps, options.snr_gamma)
        if variance_output:
            loss = loss + options.vlb_weight * bound(prediction.detach())
    if importance is not None:
        if isinstance(distribution, LossHistory):
            distribution.record(timesteps, loss)
        loss = loss * importance.to(device)
    return CropLosses(loss, timesteps / num_timesteps)


def _draw_mask_input(
    batch: dict[str, Tensor], num_classes: int, seeds: list[int], mask_dropout: float, absorbed: Tensor | None
) -> Tensor:
    """What the network sees of the masks: one-hot classes, some masks dropped, some pixels absorbed, instance edges.

    Args:
        absorbed: (N,) shares of the pixels that lose their class; None: no mask noise.
    """
    mask = batch["mask"]
    dropped = torch.tensor([np.random.default_rng((s, 4)).random() < mask_dropout for s in seeds], device=mask.device)
    one_hot_mask = one_hot_with_dropout(mask, num_classes, dropped)
    if absorbed is not None:
        one_hot_mask = absorb_classes(one_hot_mask, draw_lifetimes(seeds, *mask.shape[1:]), absorbed)
    if "instance_edges" in batch:
        edges = batch["instance_edges"][:, None] & ~dropped[:, None, None, None]
        one_hot_mask = torch.cat([one_hot_mask, edges.float()], dim=1)
    return one_hot_mask

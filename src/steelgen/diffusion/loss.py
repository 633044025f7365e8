"""Training losses of mask-conditioned diffusion, computed without synchronizing with the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steelgen.diffusion.noise import NoiseSchedule, combine_target, scale_to_flow
from steelgen.diffusion.reverse import ReverseProcess, compute_reverse_step
from steelgen.diffusion.timesteps import LossHistory, TimestepDistribution


def one_hot_with_dropout(mask: Tensor, num_classes: int, dropped: Tensor | None = None) -> Tensor:
    """One-hot encodes class indices; ignored pixels and dropped masks are all zero.

    Args:
        mask: (N, H, W) int64; indices ≥ num_classes are ignored pixels.
        dropped: (N,) bool; True gives the null mask. None keeps all.

    Returns:
        (N, num_classes, H, W) float32.
    """
    one_hot = mask[..., None] == torch.arange(num_classes, device=mask.device)
    if dropped is not None:
        one_hot = one_hot & ~dropped[:, None, None, None]
    return one_hot.permute(0, 3, 1, 2).float()


def compute_target(schedule: NoiseSchedule, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The network's target at timesteps (N,); see `combine_target`."""
    return combine_target(schedule.prediction_type, image, noise, *schedule.compute_levels(timesteps))


@dataclass(frozen=True)
class LossOptions:
    """The training objective; see `NoiseSection`."""

    objective: str = "simple"
    """"simple": the squared error, plus `vlb_weight` times the bound if the variance is learned; "variational": the
    bound L_vlb, in bits per value."""
    vlb_weight: float = 0.001
    value_range: tuple[float, float] = (-1.0, 1.0)
    """Gray levels 0 and 255 in the network's units."""


def compute_diffusion_loss(
    network: nn.Module,
    schedule: NoiseSchedule,
    batch: dict[str, Tensor],
    num_classes: int,
    options: LossOptions,
    distribution: TimestepDistribution,
    process: ReverseProcess | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the denoising loss of each crop.

    With a learned variance it is L_simple + λ·L_vlb (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16), without
    gradients to the mean in the second term; L_vlb is estimated as T times the term of the sampled timestep.

    Args:
        batch: `image` (N, C, H, W) in the network's units, `mask` (N, H, W) int64, the tensors of `CropRandomness`;
            `instance_edges` (N, H, W) bool and `conditions` (N, K) for networks that use them; `coarse` (N, C, H, W)
            and `coarse_noise` (N,) for refining networks; `mask_shares` (N, num_classes, h, w), the one-hot mask at the
            resolution of the latents, for networks of latents.
        distribution: of the timesteps; a `LossHistory` also records the losses.
        process: reverse process of the whole schedule on the batch's device; needed for the bound.

    Returns:
        The losses (N,) float32 and the timesteps (N,) int64.
    """
    image, noise = batch["image"], batch["noise"]
    timesteps, importance = distribution.draw(batch["fraction"])
    noisy_image = network_input = schedule.add_noise(image, noise, timesteps)
    if schedule.prediction_type == "flow":
        network_input = scale_to_flow(noisy_image, *schedule.compute_levels(timesteps))
    told: dict[str, Tensor] = {name: batch[name] for name in ("coarse", "coarse_noise") if name in batch}
    if "conditions" in batch:
        told["conditions"] = _drop_conditions(batch)
    output = network(network_input, timesteps, _build_mask_input(batch, num_classes), **told).float()
    prediction, *variance_output = output.split(image.shape[1], dim=1)

    def bound(prediction: Tensor) -> Tensor:
        assert process is not None, "the variational bound needs the reverse process"
        kind, learned = schedule.prediction_type, variance_output[0] if variance_output else None
        return len(process) * compute_variational_bound(
            process, timesteps, image, noisy_image, prediction, learned, kind, options.value_range
        )

    if options.objective == "variational":
        loss = bound(prediction)
    else:
        target = compute_target(schedule, image, noise, timesteps)
        loss = (prediction - target).square().mean(dim=(1, 2, 3))
        if variance_output:
            loss = loss + options.vlb_weight * bound(prediction.detach())
    if isinstance(distribution, LossHistory):
        distribution.record(timesteps, loss)
    if importance is not None:
        loss = loss * importance
    return loss, timesteps


def _drop_conditions(batch: dict[str, Tensor]) -> Tensor:
    """Conditions (N, K), NaN where dropped."""
    dropped = batch.get("conditions_dropped")
    return batch["conditions"] if dropped is None else batch["conditions"].masked_fill(dropped, math.nan)


def _build_mask_input(batch: dict[str, Tensor], num_classes: int) -> Tensor:
    """One-hot masks after mask dropout, with instance edges as the last channel if the batch has them."""
    dropped = batch["dropped"]
    if "mask_shares" in batch:
        return batch["mask_shares"] * ~dropped[:, None, None, None]
    one_hot_mask = one_hot_with_dropout(batch["mask"], num_classes, dropped)
    if "instance_edges" not in batch:
        return one_hot_mask
    edges = batch["instance_edges"][:, None] & ~dropped[:, None, None, None]
    return torch.cat([one_hot_mask, edges.float()], dim=1)


def compute_variational_bound(
    process: ReverseProcess,
    timesteps: Tensor,
    image: Tensor,
    noisy_image: Tensor,
    prediction: Tensor,
    variance_output: Tensor | None,
    prediction_type: str,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """L_t of each image in bits per value: KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)), at the first step −log p(x_0|x_1).

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 5 and section 3.3.

    Args:
        timesteps: (N,) int64, steps of `process`.
        image: x_0, (N, C, H, W).
        noisy_image: x_t.
        prediction, variance_output, prediction_type: see `compute_reverse_step`.
        value_range: gray levels 0 and 255 in the units of `image`, 255 equal bins apart.

    Returns:
        (N,) float32.
    """
    model = compute_reverse_step(process, timesteps, noisy_image, prediction, variance_output, prediction_type)
    # The true posterior is the reverse step of a network that knows the image and has the smallest variance.
    true = compute_reverse_step(process, timesteps, noisy_image, image, None, "sample", "fixed_small")
    divergence = 0.5 * (
        model.log_variance
        - true.log_variance
        - 1
        + (true.log_variance - model.log_variance).exp()
        + (true.mean - model.mean).square() * (-model.log_variance).exp()
    )
    likelihood = compute_discrete_log_likelihood(image, model.mean, 0.5 * model.log_variance, value_range)
    first = (timesteps == 0)[:, None, None, None]
    return torch.where(first, -likelihood, divergence).mean(dim=(1, 2, 3)) / math.log(2)


def compute_discrete_log_likelihood(
    image: Tensor, mean: Tensor, log_deviation: Tensor, value_range: tuple[float, float]
) -> Tensor:
    """Log of a Gaussian's mass in each value's 8-bit bin, with open outer bins (Ho et al. 2020, eq. 13).

    Args:
        image, mean, log_deviation: (N, C, H, W).

    Returns:
        (N, C, H, W), in nats.
    """
    low, high = value_range
    half_bin = (high - low) / 255 / 2
    inverse = (-log_deviation).exp()
    above = torch.special.ndtr((image - mean + half_bin) * inverse)
    below = torch.special.ndtr((image - mean - half_bin) * inverse)
    above = torch.where(image > high - half_bin, torch.ones_like(above), above)
    below = torch.where(image < low + half_bin, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()

"""The training loss of mask-conditioned diffusion: noise → predict → loss, tensors alone, without a host wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steelgen.diffusion.flow import scale_to_flow
from steelgen.diffusion.loss_history import LossHistory
from steelgen.diffusion.noise import NoiseSchedule
from steelgen.diffusion.reverse import ReverseProcess
from steelgen.diffusion.timesteps import TimestepDistribution
from steelgen.diffusion.variational import compute_variational_bound


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
    """What the network should predict: ε, x₀, the flow ε − x₀ (Lipman et al. 2022, arXiv 2210.02747), or the velocity
    v = √ᾱ ε − √(1−ᾱ) x₀ (Salimans & Ho 2022, arXiv 2202.00512)."""
    if schedule.prediction_type == "v_prediction":
        signal, spread = schedule.compute_levels(timesteps)
        return signal * noise - spread * image
    return {"epsilon": noise, "sample": image, "flow": noise - image}[schedule.prediction_type]


@dataclass(frozen=True)
class LossOptions:
    """What is minimized; see `NoiseSection`."""

    objective: str = "simple"
    """"simple": the squared error, with `vlb_weight` times the bound where the variance is learned; "variational": the
    bound L_vlb alone, in bits per value."""
    vlb_weight: float = 0.001
    value_range: tuple[float, float] = (-1.0, 1.0)
    """What gray levels 0 and 255 are in the images."""


def compute_diffusion_loss(
    network: nn.Module,
    schedule: NoiseSchedule,
    batch: dict[str, Tensor],
    num_classes: int,
    options: LossOptions,
    distribution: TimestepDistribution,
    process: ReverseProcess | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoising loss of each crop.

    With a learned variance it is L_simple + λ·L_vlb (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16), the mean held
    fixed in the second term, and L_vlb estimated as T times that of the one timestep drawn.

    Args:
        batch: `image` (N, C, H, W) in [-1, 1], `mask` (N, H, W) int64, what `CropRandomness` draws; for networks that
            see them also `instance_edges` (N, H, W) bool.
        distribution: draws the timesteps; a `LossHistory` by the losses so far, which it notes.
        process: the whole schedule's reverse process, on the device of the batch, where the bound needs it.

    Returns:
        The losses as they are minimized, (N,) float32, and the timesteps (N,) int64.
    """
    image, noise = batch["image"], batch["noise"]
    timesteps, importance = distribution.draw(batch["fraction"])
    noisy_image = network_input = schedule.add_noise(image, noise, timesteps)
    if schedule.prediction_type == "flow":
        network_input = scale_to_flow(noisy_image, *schedule.compute_levels(timesteps))
    output = network(network_input, timesteps, _build_mask_input(batch, num_classes)).float()
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


def _build_mask_input(batch: dict[str, Tensor], num_classes: int) -> Tensor:
    """What the network sees of the masks: one-hot classes, some masks dropped, instance edges."""
    dropped = batch["dropped"]
    one_hot_mask = one_hot_with_dropout(batch["mask"], num_classes, dropped)
    if "instance_edges" not in batch:
        return one_hot_mask
    edges = batch["instance_edges"][:, None] & ~dropped[:, None, None, None]
    return torch.cat([one_hot_mask, edges.float()], dim=1)

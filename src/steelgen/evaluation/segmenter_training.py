"""Training loop of all segmentation networks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelgen.devices import autocast
from steelgen.models.architectures import find_pretrained_part

WARM_UP_SHARE = 0.1
"""Fraction of training with linear warm-up."""


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay."""

    steps: int
    learning_rate: float
    """Peak learning rate."""
    weight_decay: float = 0.01
    encoder_factor: float = 1.0
    """Learning-rate factor of a pretrained encoder."""
    frozen_share: float = 0.0
    """Initial fraction of training during which a pretrained encoder is frozen."""
    max_seconds: float | None = None
    """Time limit; the learning-rate schedule is compressed to end with it."""
    clock: Callable[[], float] = time.perf_counter
    """Time in seconds, for max_seconds."""
    mixed_precision: str = "no"
    """no, bf16 or fp16."""


def train_steps(
    network: nn.Module,
    sample_batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    compute_loss: Callable[[Any, torch.Tensor], torch.Tensor],
    recipe: Recipe,
) -> Iterator[int]:
    """Trains a segmenter in place; the caller may inspect the network between steps, or stop.

    Batch norms of a pretrained encoder keep their statistics; small, uniform batches would degrade them.

    Args:
        network: images → logits of the same size, or anything else with a method `float`.
        sample_batch: step, from 0 → images (N, C, S, S) and masks (N, S, S).
        compute_loss: float32 logits (N, num_classes, S, S) and masks → scalar loss.
        recipe: optimizer and schedule.

    Yields:
        Steps done, after each step.
    """
    device = next(network.parameters()).device
    encoder = find_pretrained_part(network)
    groups = _group_parameters(network, encoder, recipe)
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    start = recipe.clock()
    for step in range(recipe.steps):
        progress = step / recipe.steps
        if recipe.max_seconds is not None:
            progress = max(progress, (recipe.clock() - start) / recipe.max_seconds)
            if progress >= 1 and step:
                return
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale_learning_rate(progress, recipe.steps)
        network.train()
        if encoder is not None:
            encoder.requires_grad_(progress >= recipe.frozen_share and recipe.encoder_factor > 0)
            _keep_statistics(encoder)
        images, masks = sample_batch(step)
        with autocast(recipe.mixed_precision, device):
            logits = network(images.to(device))
        loss = compute_loss(logits.float(), masks.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield step + 1


def train_to_best(
    network: nn.Module,
    steps: Iterator[int],
    total: int,
    validate: Callable[[nn.Module], float],
    validate_every: int,
    patience: int | None = None,
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[tuple[int, float]]]:
    """Trains, validates at intervals, and restores the best weights (the earliest in case of ties).

    Args:
        network: the network that `steps` trains.
        steps: from `train_steps`.
        total: largest number of steps.
        validate: the network → its mIoU, or another value of at least 0, on validation micrographs.
        validate_every: steps between validations; the last step is always validated.
        patience: validations without a new best before training stops; None disables early stopping.
        report_progress: called with (steps done, total steps).

    Returns:
        The step of the best weights, and (step, value) of each validation.
    """
    course: list[tuple[int, float]] = []
    best, best_step, best_state = -1.0, 0, network.state_dict()
    done = 0

    def run_validation() -> None:
        nonlocal best, best_step, best_state
        course.append((done, validate(network)))
        if course[-1][1] > best:
            best, best_step = course[-1][1], done
            best_state = {name: value.clone() for name, value in network.state_dict().items()}

    for done in steps:
        if done % validate_every == 0:
            run_validation()
            since = sum(step > best_step for step, _ in course)
            if patience is not None and since >= patience:
                break
        report_progress(done, total)
    if not course or course[-1][0] != done:
        run_validation()
    report_progress(total, total)
    network.load_state_dict(best_state)
    return best_step, course


def scale_learning_rate(progress: float, steps: int) -> float:
    """Returns the learning rate as a fraction of its peak: linear warm-up over the first tenth, then cosine decay to 0.

    Args:
        progress: completed fraction of training, in [0, 1].
        steps: total steps.
    """
    if progress < WARM_UP_SHARE:
        return (progress + 1 / steps) / (WARM_UP_SHARE + 1 / steps)
    return 0.5 + 0.5 * math.cos(math.pi * (min(progress, 1.0) - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))


def _group_parameters(network: nn.Module, encoder: nn.Module | None, recipe: Recipe) -> list[dict]:
    pretrained = set() if encoder is None else set(encoder.parameters())
    rest = [parameter for parameter in network.parameters() if parameter not in pretrained]
    groups = [{"params": rest, "peak": recipe.learning_rate}]
    if pretrained:
        assert encoder is not None
        groups.append({"params": list(encoder.parameters()), "peak": recipe.learning_rate * recipe.encoder_factor})
    return groups


def _keep_statistics(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()

"""How every segmentation network is trained: one schedule, for the judge as for those of a utility study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from steelgen.devices import autocast
from steelgen.models.architectures import find_pretrained_part

WARM_UP_SHARE = 0.1
"""Of the training, in which the learning rate rises."""


@dataclass(frozen=True)
class Recipe:
    """AdamW on a learning rate that rises linearly and falls by a cosine."""

    steps: int
    learning_rate: float
    """At the peak."""
    weight_decay: float = 0.01
    encoder_factor: float = 1.0
    """Share of the learning rate for a pretrained encoder."""
    frozen_share: float = 0.0
    """Share of the training in which a pretrained encoder rests."""
    max_seconds: float | None = None
    """When training ends though steps are left; the schedule then follows the clock."""
    clock: Callable[[], float] = time.perf_counter
    """Gives the seconds that max_seconds counts."""
    mixed_precision: str = "no"
    """no, bf16 or fp16."""


def train_steps(
    network: nn.Module,
    sample_batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    compute_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    recipe: Recipe,
) -> Iterator[int]:
    """Trains a segmenter in place; whoever iterates may look at it, or stop.

    Batch normalization of a pretrained encoder keeps its statistics, which a few crops of one steel would spoil.

    Args:
        network: images → logits of the same size.
        sample_batch: step, from 0 → images (N, C, S, S) and masks (N, S, S).
        compute_loss: of float32 logits (N, num_classes, S, S) and masks.
        recipe: how long and how fast.

    Yields:
        Steps done, after each.
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
    """Trains on, validates now and then, and leaves the weights with the best validation, the first of equals.

    Args:
        network: that `steps` trains.
        steps: from `train_steps`.
        total: steps in all, at most.
        validate: the network → its mIoU on validation micrographs.
        validate_every: steps between validations; there is one at the end besides.
        patience: validations without a new best after which training stops early; None: never.
        report_progress: called with (steps done, steps in all).

    Returns:
        The step of the best weights, and each validation as (step, mIoU).
    """
    course: list[tuple[int, float]] = []
    best, best_step, best_state = -1.0, 0, network.state_dict()
    done = 0

    def look() -> None:
        nonlocal best, best_step, best_state
        course.append((done, validate(network)))
        if course[-1][1] > best:
            best, best_step = course[-1][1], done
            best_state = {name: value.clone() for name, value in network.state_dict().items()}

    for done in steps:
        if done % validate_every == 0:
            look()
            since = sum(step > best_step for step, _ in course)
            if patience is not None and since >= patience:
                break
        report_progress(done, total)
    if not course or course[-1][0] != done:
        look()
    report_progress(total, total)
    network.load_state_dict(best_state)
    return best_step, course


def scale_learning_rate(progress: float, steps: int) -> float:
    """Share of the peak: a line up over the first tenth, from its first step on, then half a cosine down to 0.

    Args:
        progress: share of the training that is done, in [0, 1].
        steps: of the training.
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

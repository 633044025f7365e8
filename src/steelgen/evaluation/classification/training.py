"""Training and test of one cell of a classification study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelgen.config.classify import ClassifyConfig
from steelgen.data.crops import image_to_tensor
from steelgen.devices import autocast, pick_device
from steelgen.evaluation.classification.data import ClassifierBatches, ClassifierData, Sides
from steelgen.evaluation.classification.statistics import compute_average_precision
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.training import train_best
from steelgen.models.classifier import build_classifier

_BATCH = 32
"""Images per forward pass of a prediction."""


def run_classifier_cell(
    cell: Cell,
    data: ClassifierData,
    config: ClassifyConfig,
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Trains a classifier, selects the weights with the best validation average precision, and tests them.

    Args:
        cell: code, architecture, and seed.
        data: data of the study.
        config: config of the study.
        report_progress: called with (steps done, total steps).

    Returns:
        JSON values: the training set, validation average precision by step, and of the test average_precision and the
        name, label (1: defective) and score (logit) of each image.

    Raises:
        InputError: if weights are missing.
    """
    settings = config.training
    batches = ClassifierBatches(data, cell.code, cell.seed, settings)
    device = pick_device(config.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(cell.seed)
        network = build_classifier(
            cell.architecture, data.geometry.in_channels, settings.base_channels, settings.weights
        )
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    best = train_best(
        network,
        batches.sample_batch,
        F.binary_cross_entropy_with_logits,
        config,
        lambda trained: _score_average_precision(trained, data.val, config.mixed_precision),
        report_progress,
    )
    scores = predict_scores(network, data.test, config.mixed_precision)
    return {
        "code": cell.code.text,
        "architecture": cell.architecture,
        "seed": cell.seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "real": batches.real.micrographs.stems,
        "num_sound": len(data.train.sound),
        "num_generated": len(batches.generated.micrographs) if batches.generated else 0,
        "real_share": batches.real_share,
        **best,
        "test": {
            "images": data.test.names,
            "labels": data.test.labels.astype(int).tolist(),
            "average_precision": float(compute_average_precision(scores, data.test.labels)[0]),
            "scores": scores.tolist(),
        },
    }


def _score_average_precision(network: torch.nn.Module, sides: Sides, mixed_precision: str) -> float:
    return float(compute_average_precision(predict_scores(network, sides, mixed_precision), sides.labels)[0])


@torch.inference_mode()
def predict_scores(network: torch.nn.Module, sides: Sides, mixed_precision: str) -> NDArray[np.float64]:
    """Predicts logits (N,) of all images, sound ones first; positive for defective."""
    network.eval()
    device = next(network.parameters()).device
    images = [*sides.sound.images, *sides.defective.images]
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = torch.stack([image_to_tensor(image) for image in images[start : start + _BATCH]])
        with autocast(mixed_precision, device):
            logits = network(batch.to(device, memory_format=torch.channels_last))
        parts.append(logits.double().cpu().numpy())
    return np.concatenate(parts)

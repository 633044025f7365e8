"""Training and test of one cell of a utility study."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.studies import StudyConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.devices import autocast, pick_device
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import (
    compute_boundary_f1,
    compute_confusion,
    compute_iou,
    compute_mean_iou,
    count_boundaries,
)
from steelgen.evaluation.segmentation import choose_enlargement, compute_class_weights, compute_segmentation_loss
from steelgen.evaluation.segmenter_training import Recipe, train_steps, train_to_best
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.data import StudyData
from steelgen.evaluation.utility.training_set import TrainingSet
from steelgen.evaluation.windows import label_by_windows
from steelgen.models.architectures import build_architecture
from steelgen.models.segmenter import Enlarged


def run_cell(
    cell: Cell,
    data: StudyData,
    config: UtilityConfig,
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Trains a network, selects the weights with the best validation mIoU, and tests them.

    Args:
        cell: code, architecture, and seed.
        data: data of the study, in the cell's fold.
        config: config of the study.
        report_progress: called with (steps done, total steps).

    Returns:
        JSON values: the training set, validation mIoU by step, and the test's dataset-level mIoU (mean_iou), class_iou,
        image_iou, boundary_f1 by class, and confusion matrix and boundary counts of each micrograph.

    Raises:
        InputError: if the architecture is unknown or its package is missing.
    """
    training_set = TrainingSet(data, cell.code, cell.seed, config.training)
    device = pick_device(config.device)
    # Dropout uses torch's global generator.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(cell.seed)
        network = build_network(cell.architecture, data, config).to(device)
        best = train_network(network, training_set, data, config, report_progress)
    predicted = predict_whole(network, data.test, data.geometry, config.mixed_precision)
    confusion = _count(data.test, predicted)
    boundaries = [
        count_boundaries(mask[None], seen[None], data.info.num_classes, data.info.ignore_index)[0]
        for mask, seen in zip(data.test.masks, predicted, strict=True)
    ]
    return {
        **describe_training(cell, network, training_set),
        **best,
        "test": {
            "micrographs": data.test.stems,
            "mean_iou": to_json(float(compute_mean_iou(confusion.sum(axis=0)))),
            "class_iou": to_json(compute_iou(confusion.sum(axis=0))),
            "image_iou": to_json(compute_mean_iou(confusion)),
            "boundary_f1": to_json(compute_boundary_f1(np.sum(boundaries, axis=0))),
            "confusion": to_json(confusion),
            "boundaries": to_json(np.stack(boundaries)),
        },
    }


def build_network(architecture: str, data: StudyData, config: UtilityConfig) -> torch.nn.Module:
    """Builds a segmentation network for the images of a study, from torch's global random state."""
    channels, training = data.geometry.in_channels, config.training
    network = build_architecture(
        architecture, channels, data.info.num_classes, training.base_channels, training.weights
    )
    factor = training.enlargement or choose_enlargement(data.train, data.geometry)
    return network if factor == 1 else Enlarged(network, factor)


def describe_training(cell: Cell, network: torch.nn.Module, training_set: TrainingSet) -> dict[str, Any]:
    """JSON values of a cell: what was trained, and on what."""
    return {
        "code": cell.code.text,
        "architecture": cell.architecture,
        "seed": cell.seed,
        **({} if cell.fold is None else {"fold": cell.fold}),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "real": training_set.real.micrographs.stems if training_set.real else [],
        "num_generated": len(training_set.generated.micrographs) if training_set.generated else 0,
        "real_share": training_set.real_share,
    }


def train_network(
    network: torch.nn.Module,
    training_set: TrainingSet,
    data: StudyData,
    config: UtilityConfig,
    report_progress: Callable[[int, int], None],
    validate: Callable[[torch.nn.Module], float] | None = None,
) -> dict[str, Any]:
    """Trains a segmentation network in place and restores the best weights; see `train_best`.

    Args:
        validate: the network → what selects the weights; None for the mIoU on the validation micrographs.
    """

    def compute_validation_iou(network: torch.nn.Module) -> float:
        confusion = count_confusion(network, data.val, data.geometry, config.mixed_precision)
        return float(compute_mean_iou(confusion.sum(axis=0)))

    settings = config.training
    class_weights = compute_class_weights(training_set.masks, data.info.num_classes)
    weights = class_weights.to(next(network.parameters()).device)
    loss = partial(
        compute_segmentation_loss, class_weights=weights, ignore_index=data.info.ignore_index, kind=settings.loss
    )
    sample_batch = partial(training_set.sample_batch, batch_size=settings.batch_size)
    return train_best(network, sample_batch, loss, config, validate or compute_validation_iou, report_progress)


def train_best(
    network: torch.nn.Module,
    sample_batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    compute_loss: Callable[[Any, torch.Tensor], torch.Tensor],
    config: StudyConfig,
    validate: Callable[[torch.nn.Module], float],
    report_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Trains a network in place and restores the weights of the best validation (the earliest in case of ties).

    Args:
        sample_batch, compute_loss: see `train_steps`.
        validate: see `train_to_best`.

    Returns:
        best_step, and validation: a list of [step, value].
    """
    settings = config.training
    recipe = Recipe(
        settings.steps,
        settings.learning_rate,
        settings.weight_decay,
        settings.encoder_factor,
        settings.frozen_share,
        mixed_precision=config.mixed_precision,
    )
    best_step, validation = train_to_best(
        network,
        train_steps(network, sample_batch, compute_loss, recipe),
        settings.steps,
        validate,
        settings.validate_every,
        settings.patience,
        report_progress,
    )
    return {"best_step": best_step, "validation": to_json(validation)}


def count_confusion(
    network: torch.nn.Module, micrographs: Micrographs, geometry: CropGeometry, mixed_precision: str
) -> NDArray[np.int64]:
    """Computes confusion matrices (N, C, C) of whole micrographs at full resolution; rows true, columns predicted."""
    return _count(micrographs, predict_whole(network, micrographs, geometry, mixed_precision))


def predict_whole(
    network: torch.nn.Module, micrographs: Micrographs, geometry: CropGeometry, mixed_precision: str
) -> list[NDArray[np.uint8]]:
    """Predicts the masks (H, W) of whole micrographs at full resolution."""
    network.eval()
    device, masks = next(network.parameters()).device, []
    for image, mask in zip(micrographs.images, micrographs.masks, strict=True):
        # Training crops of a micrograph smaller than crop_size are its largest squares; test at that scale.
        crop_size = min(geometry.crop_size, *mask.shape)
        with autocast(mixed_precision, device):
            predicted, _ = label_by_windows(
                network, image, geometry.image_size, crop_size, micrographs.info.num_classes
            )
        masks.append(predicted)
    return masks


def _count(micrographs: Micrographs, predicted: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    info = micrographs.info
    pairs = zip(micrographs.masks, predicted, strict=True)
    return np.stack([compute_confusion(mask, seen, info.num_classes, info.ignore_index) for mask, seen in pairs])

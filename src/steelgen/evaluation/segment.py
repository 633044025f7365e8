"""Training of a segmenter on real micrographs, and labeling of others with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.segment import SegmentConfig
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.images import load_image
from steelgen.data.unlabeled import list_unlabeled
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_confusion, compute_mean_iou, compute_scores
from steelgen.evaluation.labeled_folders import complete_dataset
from steelgen.evaluation.labeler import Labeler, build_geometry, label_micrograph, save_labeler
from steelgen.evaluation.pixel_training import train_pixel_heads
from steelgen.evaluation.segmentation import resolve_settings, train_segmenter
from steelgen.evaluation.windows import label_by_windows
from steelgen.files import check_output_free, new_folder, save_json

SCORES_FILE = "scores.json"
COMPLETED = "dataset"
"""Folder of the completed dataset in that of a segmenter."""


def train_labeler(config: SegmentConfig, report_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Trains a segmenter, scores it on whole held-out micrographs, labels unlabeled ones, and writes all.

    Args:
        config: see `SegmentConfig`.
        report_progress: called with (steps done, total steps), then with (images labeled, images to label).

    Returns:
        The contents of scores.json: with a test split mean_iou, class_iou, image_iou, boundary F1, confusion matrix;
        the mIoU of each validation; with unlabeled micrographs their number, `predicted`.

    Raises:
        InputError: if the dataset or the output folder cannot be used.
    """
    check_output_free(config.output_dir)
    train = load_micrographs(config.dataset, config.train_split, config.in_channels)
    test = load_micrographs(config.dataset, config.test_split, config.in_channels) if config.test_split else None
    if config.unlabeled:
        for path in list_unlabeled(config.dataset, config.unlabeled):
            load_image(path)  # raises before training
    geometry = build_geometry(config)
    if config.features is None:
        config = config.model_copy(update={"segmenter": resolve_settings(config.segmenter, train, geometry)})
    val = load_validation(config)
    course: list[float] = []

    def validate(network: torch.nn.Module) -> float:
        assert val is not None
        course.append(_validate(network, val, config))
        return course[-1]

    device = str(pick_device(config.device))
    network: torch.nn.Module
    if config.features is not None:
        network, course = train_pixel_heads(train, val, geometry, config, device, report_progress)
    else:
        network = train_segmenter(
            train,
            geometry,
            config.segmenter,
            config.seed,
            device,
            report_progress,
            None if val is None else (validate, config.validate_every, config.patience),
        )
    labeler = Labeler(network, config, train.info)
    scores: dict[str, Any] = {"class_names": train.info.class_names, "validation": to_json(course)}
    if test is not None:
        predicted = [label_micrograph(labeler, image)[0] for image in test.images]
        scores |= {"split": config.test_split, "micrographs": test.stems, **_score(test, predicted)}
    with new_folder(config.output_dir) as folder:
        save_labeler(folder, labeler)
        if config.unlabeled:
            completed = folder / COMPLETED
            scores["predicted"] = complete_dataset(
                labeler, config.dataset, config.unlabeled, completed, report_progress
            )
        save_json(folder / SCORES_FILE, scores)
    return scores


def load_validation(config: SegmentConfig) -> Micrographs | None:
    """Loads the validation split of a segmenter; None if there is none.

    Raises:
        InputError: if it is also the training or test split, or cannot be read.
    """
    if config.val_split is None or not (config.dataset / config.val_split).is_dir():
        return None
    if config.val_split in (config.train_split, config.test_split):
        raise InputError(f"val_split: {config.val_split!r} is also the train_split or test_split; use another or null")
    return load_micrographs(config.dataset, config.val_split, config.in_channels)


def _validate(network: torch.nn.Module, val: Micrographs, config: SegmentConfig) -> float:
    """Computes the mIoU on whole micrographs, without test-time augmentation to save time."""
    network.eval()
    info = val.info
    confusion = np.zeros((info.num_classes, info.num_classes), np.int64)
    for image, mask in zip(val.images, val.masks, strict=True):
        predicted, _ = label_by_windows(network, image, config.image_size, config.crop_size, info.num_classes)
        confusion += compute_confusion(mask, predicted, info.num_classes, info.ignore_index)
    return float(compute_mean_iou(confusion))


def _score(test: Micrographs, predicted: list[NDArray[np.uint8]]) -> dict[str, Any]:
    info, pairs = test.info, list(zip(test.masks, predicted, strict=True))
    # Micrographs of different sizes cannot be stacked, so all pixels are concatenated to one row.
    agreements = [compute_scores(t[None], p[None], info.num_classes, info.ignore_index) for t, p in pairs]
    true, found = (np.concatenate([pair[i].ravel() for pair in pairs])[None, None] for i in (0, 1))
    whole = compute_scores(true, found, info.num_classes, info.ignore_index)
    return {
        "mean_iou": to_json(whole.mean_iou),
        "class_iou": to_json(whole.class_iou),
        "image_iou": to_json([float(agreement.image_iou[0]) for agreement in agreements]),
        "image_boundary_f1": to_json([agreement.mean_boundary_f1 for agreement in agreements]),
        "confusion": to_json(whole.confusion),
    }

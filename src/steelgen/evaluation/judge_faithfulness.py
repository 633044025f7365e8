"""Faithfulness of generated images to their masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import bootstrap_interval
from steelgen.evaluation.iou import (
    MIN_REAL_IOU,
    SegmentationScores,
    bootstrap_scores,
    can_judge,
    compute_scores,
    nanmean,
)
from steelgen.evaluation.prediction import averaging_of, predict_masks
from steelgen.evaluation.segmentation import load_or_train_segmenter
from steelgen.evaluation.sets import Evidence, ImageSet, Judgment


def see_masks(evidence: Evidence, report_progress: Callable[[str], None]) -> dict[str, NDArray[np.uint8]]:
    """Segments the generated and real images with a segmenter trained on the real training split.

    Returns:
        Masks by name of the set; empty if the dataset has no masks to train on.
    """
    config = evidence.config
    if not evidence.info.num_classes:
        return {}
    settings, averaging = config.segmenter, averaging_of(config.segmenter)
    report_progress(
        f"segmenter: {settings.architecture}, {settings.steps} steps on the real {config.train_split} split"
    )
    segmenter = load_or_train_segmenter(
        evidence.train_micrographs,
        evidence.geometry,
        settings,
        evidence.cache_dir,
        config.seed,
        evidence.device,
    )
    train = evidence.train.images[: config.microstructure.max_images]
    return {
        "generated": predict_masks(segmenter, evidence.generated.images, averaging),
        evidence.held_out.name: predict_masks(segmenter, evidence.held_out.images, averaging),
        # Used only for the microstructure.
        evidence.train.name: predict_masks(segmenter, train, averaging),
    }


def judge_faithfulness(evidence: Evidence, seen: dict[str, NDArray[np.uint8]]) -> Judgment:
    """Compares the masks of generated images with the segmenter's predictions.

    A class that the segmenter cannot find on real held-out images cannot be judged: it gets a note and a warning, and
    the verdict excludes it.

    Args:
        evidence: the sets.
        seen: from `see_masks`.
    """
    if not evidence.info.num_classes:
        return [], {}, ["faithfulness is not measured: the dataset has no masks"]
    if evidence.generated.masks is None:
        return [], {}, ["faithfulness is not measured: the generated images have no masks"]
    config = evidence.config

    def compare(images: ImageSet) -> SegmentationScores:
        assert images.masks is not None
        return compute_scores(
            images.masks,
            seen[images.name],
            evidence.info.num_classes,
            evidence.info.ignore_index,
            config.segmenter.boundary_tolerance,
        )

    generated, floor = compare(evidence.generated), compare(evidence.held_out)
    intervals = bootstrap_scores(generated, config.seed)
    names = evidence.info.class_names
    shared: dict[str, Any] = {
        "section": "faithfulness",
        "compared": f"generated vs their masks (floor: {evidence.held_out.name})",
        "n": (len(evidence.generated), len(evidence.held_out)),
        "seed": config.seed,
        "better": "higher",
    }
    per_image, floor_per_image = generated.image_iou, floor.image_iou
    per_class = zip(names, generated.class_iou, floor.class_iou, intervals.class_iou, strict=True)
    rows = [
        ("mIoU", generated.mean_iou, floor.mean_iou, intervals.mean_iou),
        ("mIoU per image", nanmean(per_image), nanmean(floor_per_image), bootstrap_interval(per_image, config.seed)),
        ("boundary F1", generated.mean_boundary_f1, floor.mean_boundary_f1, intervals.mean_boundary_f1),
        *((f"IoU {name}", float(value), float(real), interval) for name, value, real, interval in per_class),
    ]
    unseen = [name for name, real in zip(names, floor.class_iou, strict=True) if real < MIN_REAL_IOU]
    notes = {f"IoU {name}": f"cannot be judged: below {MIN_REAL_IOU} on real images" for name in unseen}
    figures = [
        Figure(metric=metric, value=value, floor=real, interval=interval, note=notes.get(metric), **shared)
        for metric, value, real, interval in rows
    ]
    warnings = [
        f"faithfulness: the segmenter cannot judge {name}: its IoU on real {evidence.held_out.name} images is "
        f"{real:.2f}, below {MIN_REAL_IOU}; more segmenter.steps may help"
        for name, real in zip(names, floor.class_iou, strict=True)
        if name in unseen
    ]
    details = {
        "class_names": names,
        "segmenter_trained_on": config.train_split,
        "can_judge": [can_judge(float(real)) for real in floor.class_iou],
        "generated": _describe(generated),
        "held_out": _describe(floor),
    }
    return figures, details, warnings


def _describe(agreement: SegmentationScores) -> dict[str, Any]:
    """Converts scores to a dict, without the per-image counts."""
    left_out = ("image_confusion", "image_boundary_counts")
    return {name: value for name, value in asdict(agreement).items() if name not in left_out}

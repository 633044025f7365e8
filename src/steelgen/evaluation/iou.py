"""IoU and boundary F1 of predicted masks, from confusion matrices and boundary counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.intervals import Interval, center_interval, resample_weights

MIN_REAL_IOU = 0.3
"""Of a class on real held-out images, below which a segmenter cannot judge it in generated ones."""


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of predicted masks over a set of images; undefined values are NaN."""

    confusion: NDArray[np.int64]
    """(C, C) pixels of the whole set; rows are true classes, columns are predicted classes."""
    class_iou: NDArray[np.float64]
    """(C,) over the whole set; NaN for a class absent from both true and predicted masks."""
    image_iou: NDArray[np.float64]
    """(N,) mean IoU of each image over its classes; NaN if every pixel is ignored."""
    image_confusion: NDArray[np.int64]
    """(N, C, C) pixels of each image."""
    image_boundary_counts: NDArray[np.int64]
    """(N, 4, C) boundary pixels of each image, see `count_boundaries`."""
    class_boundary_f1: NDArray[np.float64]
    """(C,) over the whole set, at the requested tolerance."""

    @property
    def mean_iou(self) -> float:
        """Dataset-level mIoU: mean IoU over the classes that occur."""
        return nanmean(self.class_iou)

    @property
    def mean_boundary_f1(self) -> float:
        """Mean boundary F1 over the classes that have a boundary."""
        return nanmean(self.class_boundary_f1)


@dataclass(frozen=True)
class ScoreIntervals:
    """95 % bootstrap intervals of `SegmentationScores`, resampled over images."""

    mean_iou: Interval
    class_iou: list[Interval]
    mean_boundary_f1: Interval


def compute_scores(
    true: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    ignore_index: int = 255,
    boundary_tolerance: float = 2.0,
) -> SegmentationScores:
    """Scores predicted masks.

    Args:
        true: (N, H, W) class indices or ignore_index.
        predicted: (N, H, W) class indices.
        num_classes: C.
        ignore_index: pixels with this true value are excluded.
        boundary_tolerance: Euclidean distance in px within which boundary pixels match.
    """
    matrices = np.stack(
        [compute_confusion(t, p, num_classes, ignore_index) for t, p in zip(true, predicted, strict=True)]
    )
    confusion = matrices.sum(axis=0)
    boundaries = count_boundaries(true, predicted, num_classes, ignore_index, boundary_tolerance)
    boundary_f1 = compute_boundary_f1(boundaries.sum(axis=0))
    return SegmentationScores(
        confusion, compute_iou(confusion), compute_mean_iou(matrices), matrices, boundaries, boundary_f1
    )


def bootstrap_scores(scores: SegmentationScores, seed: int = 0, num_resamples: int = 1000) -> ScoreIntervals:
    """Computes intervals of the dataset-level scores; each resample sums its own matrices and boundary counts."""
    weights = resample_weights(len(scores.image_confusion), seed, num_resamples=num_resamples)
    # Counts stay below 2⁵³: sums in double precision are exact.
    iou = compute_iou(np.tensordot(weights, scores.image_confusion.astype(np.float64), axes=1))
    boundary_f1 = compute_boundary_f1(np.tensordot(weights, scores.image_boundary_counts.astype(np.float64), axes=1))
    return ScoreIntervals(
        mean_iou=center_interval(nanmean_rows(iou), 0.0, 1.0),
        class_iou=[center_interval(values, 0.0, 1.0) for values in iou.T],
        mean_boundary_f1=center_interval(nanmean_rows(boundary_f1), 0.0, 1.0),
    )


def compute_confusion(
    true: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """(C, C) pixel counts by true and predicted class; pixels whose true value is ignore_index are excluded.

    Args:
        true: class indices or ignore_index, any shape.
        predicted: class indices, same shape.
    """
    counted = true != ignore_index
    pairs = true[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_iou(confusion: NDArray) -> NDArray[np.float64]:
    """Intersection over union of each class.

    Args:
        confusion: (..., C, C), rows true, columns predicted.

    Returns:
        (..., C) in [0, 1]; NaN for a class without true or predicted pixels, which is neither right nor wrong.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-2) + confusion.sum(axis=-1) - intersection
    return np.divide(intersection, union, out=np.full(intersection.shape, np.nan), where=union > 0)


def can_judge(real_iou: float) -> bool:
    """Whether a class that a segmenter finds on real held-out images with that IoU is used against generated ones."""
    return real_iou >= MIN_REAL_IOU


def compute_mean_iou(confusion: NDArray) -> NDArray[np.float64]:
    """(..., C, C) confusion matrices → (...) mean IoU over the classes that occur; NaN if none does."""
    return nanmean_rows(compute_iou(confusion))


def count_boundaries(
    true: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    ignore_index: int = 255,
    tolerance: float = 2.0,
) -> NDArray[np.int64]:
    """Counts matching boundary pixels of each class; ignored pixels have no boundary. Arguments: `compute_scores`.

    Returns:
        (N, 4, C): predicted boundary pixels within `tolerance` of a true one, all predicted ones, true ones within
        `tolerance` of a predicted one, all true ones.
    """
    counts = np.zeros((len(true), 4, num_classes), np.int64)
    for number, (t, p) in enumerate(zip(true, predicted, strict=True)):
        counted = t != ignore_index
        for index in np.union1d(t[counted], p[counted]):
            true_edge = find_boundary(t == index) & counted
            predicted_edge = find_boundary(np.where(counted, p, t) == index) & counted
            counts[number, :, index] = [
                _count_near(predicted_edge, true_edge, tolerance),
                predicted_edge.sum(),
                _count_near(true_edge, predicted_edge, tolerance),
                true_edge.sum(),
            ]
    return counts


def compute_boundary_f1(counts: NDArray) -> NDArray[np.float64]:
    """Boundary F1 of each class (Csurka et al. 2013, BMVC).

    Precision is the share of predicted boundary pixels near a true one, recall the share of true ones near a
    predicted one.

    Args:
        counts: (..., 4, C), from `count_boundaries`, summed over images.

    Returns:
        (..., C) in [0, 1]; NaN for a class without a boundary.
    """
    predicted_near, predicted, true_near, true = np.moveaxis(counts, -2, 0)
    precision = predicted_near / np.maximum(predicted, 1)
    recall = true_near / np.maximum(true, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where(predicted + true > 0, f1, np.nan)


def find_boundary(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region (H, W) with a 4-neighbor outside it; the image border is not a boundary."""
    inside = np.pad(region, 1, mode="edge")
    return region & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])


def nanmean(values: NDArray[np.float64]) -> float:
    """Mean without NaNs; NaN, without a warning, if all values are NaN."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def nanmean_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`nanmean` over the last axis: (..., C) → (...)."""
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _count_near(edge: NDArray[np.bool_], other: NDArray[np.bool_], tolerance: float) -> int:
    """Pixels of `edge` within `tolerance` of `other`, which is shifted by every displacement up to that length."""
    if not edge.any() or not other.any():
        return 0
    (height, width), reach = edge.shape, int(tolerance)
    padded, near = np.pad(other, reach), np.zeros_like(edge)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= tolerance**2:
                near |= padded[reach + down : reach + down + height, reach + right : reach + right + width]
    return int((edge & near).sum())

"""Agreement of two masks: one confusion matrix, and everything that is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.intervals import Interval, center_interval, resample_weights

MIN_REAL_IOU = 0.3
"""Of a class on real held-out images, below which a segmenter cannot judge it in generated ones."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with true masks over a set of images; NaN stands for what is not defined."""

    confusion: NDArray[np.int64]
    """(C, C) pixels over the whole set: rows are true classes, columns predicted ones."""
    class_iou: NDArray[np.float64]
    """(C,) over the set; NaN for a class that is neither in the true nor in the predicted masks."""
    image_iou: NDArray[np.float64]
    """(N,) mean IoU of each image over the classes present in it; NaN for an image that is all ignored."""
    image_confusion: NDArray[np.int64]
    """(N, C, C) pixels of each image."""
    image_boundary_counts: NDArray[np.int64]
    """(N, 4, C) boundary pixels of each image, see `count_boundaries`."""
    class_boundary_f1: NDArray[np.float64]
    """(C,) over the set, at the tolerance that was asked for."""

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU over the classes that occur: the dataset-level mIoU."""
        return nanmean(self.class_iou)

    @property
    def mean_boundary_f1(self) -> float:
        """Mean of the boundary F1 over the classes that have a boundary."""
        return nanmean(self.class_boundary_f1)


def compute_agreement(
    true: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    ignore_index: int = 255,
    boundary_tolerance: float = 2.0,
) -> Agreement:
    """Compares two stacks of masks.

    Args:
        true: (N, H, W) class indices or ignore_index.
        predicted: (N, H, W) class indices.
        num_classes: number of classes.
        ignore_index: pixels with this true value count nowhere.
        boundary_tolerance: px within which a boundary pixel counts as met.
    """
    matrices = np.stack(
        [compute_confusion(t, p, num_classes, ignore_index) for t, p in zip(true, predicted, strict=True)]
    )
    image_iou = compute_mean_iou(matrices)
    confusion = matrices.sum(axis=0)
    boundaries = count_boundaries(true, predicted, num_classes, ignore_index, boundary_tolerance)
    boundary_f1 = compute_boundary_f1(boundaries.sum(axis=0))
    return Agreement(confusion, compute_iou(confusion), image_iou, matrices, boundaries, boundary_f1)


def compute_confusion(
    true: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """Counts pixels by (true, predicted) class; pixels whose true value is ignore_index are left out.

    Args:
        true: class indices or ignore_index, any shape.
        predicted: class indices, the same shape.

    Returns:
        (C, C) counts.
    """
    counted = true != ignore_index
    pairs = true[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_iou(confusion: NDArray) -> NDArray[np.float64]:
    """Intersection over union of each class.

    Args:
        confusion: (..., C, C), rows true, columns predicted.

    Returns:
        (..., C) in [0, 1]; NaN for a class without a true or predicted pixel: absent is neither right nor wrong.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-2) + confusion.sum(axis=-1) - intersection
    return np.divide(intersection, union, out=np.full(intersection.shape, np.nan), where=union > 0)


def can_judge(real_iou: float) -> bool:
    """Whether a class that a segmenter finds on real held-out images with that IoU is used against generated ones."""
    return real_iou >= MIN_REAL_IOU


def compute_mean_iou(confusion: NDArray) -> NDArray[np.float64]:
    """(..., C, C) confusion matrices → (...) mean IoU over the classes that occur; NaN where none does."""
    return nanmean_rows(compute_iou(confusion))


@dataclass(frozen=True)
class AgreementIntervals:
    """95 % bootstrap intervals of an `Agreement`, images being what is drawn again."""

    mean_iou: Interval
    class_iou: list[Interval]
    mean_boundary_f1: Interval


def bootstrap_agreement(agreement: Agreement, seed: int = 0, num_resamples: int = 1000) -> AgreementIntervals:
    """Intervals of the dataset-level figures: matrices and boundary counts are summed anew in every resample."""
    count = len(agreement.image_confusion)
    weights = resample_weights(count, seed, num_resamples=num_resamples)
    # Counts stay below 2⁵³: sums in double precision are exact.
    iou = compute_iou(np.tensordot(weights, agreement.image_confusion.astype(np.float64), axes=1))
    boundary_f1 = compute_boundary_f1(np.tensordot(weights, agreement.image_boundary_counts.astype(np.float64), axes=1))
    return AgreementIntervals(
        mean_iou=center_interval(nanmean_rows(iou), 0.0, 1.0),
        class_iou=[center_interval(values, 0.0, 1.0) for values in iou.T],
        mean_boundary_f1=center_interval(nanmean_rows(boundary_f1), 0.0, 1.0),
    )


def count_boundaries(
    true: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    ignore_index: int = 255,
    tolerance: float = 2.0,
) -> NDArray[np.int64]:
    """Boundary pixels of each class that the other mask meets. Ignored pixels hold no boundary.

    Args:
        true: (N, H, W) class indices or ignore_index.
        predicted: (N, H, W) class indices.
        tolerance: Euclidean distance in px.

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
    """Boundary F1 of each class (Csurka et al. 2013, BMVC), from counts that are pooled over a set.

    Precision is the share of predicted boundary pixels near a true one, recall the share of true ones near a
    predicted one.

    Args:
        counts: (..., 4, C), sums of what `count_boundaries` returns.

    Returns:
        (..., C) in [0, 1]; NaN for a class without any boundary.
    """
    met, predicted, found, true = np.moveaxis(counts, -2, 0)
    precision = met / np.maximum(predicted, 1)
    recall = found / np.maximum(true, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where(predicted + true > 0, f1, np.nan)


def find_boundary(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region (H, W) with one of their 4 neighbors outside; the image's edge is no boundary."""
    inside = np.pad(region, 1, mode="edge")
    return region & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])


def nanmean(values: NDArray[np.float64]) -> float:
    """The mean of the values that are defined; NaN, without a warning, where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def nanmean_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`nanmean` of each row of (..., C): (...)."""
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _count_near(edge: NDArray[np.bool_], other: NDArray[np.bool_], tolerance: float) -> int:
    """Pixels of `edge` within `tolerance` of one of `other`, which is shifted by every displacement that short."""
    if not edge.any() or not other.any():
        return 0
    (height, width), reach = edge.shape, int(tolerance)
    padded, near = np.pad(other, reach), np.zeros_like(edge)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= tolerance**2:
                near |= padded[reach + down : reach + down + height, reach + right : reach + right + width]
    return int((edge & near).sum())

"""Agreement of two masks: one confusion matrix, and everything that is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray


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
    image_iou = np.array([nanmean(compute_iou(matrix)) for matrix in matrices])
    confusion = matrices.sum(axis=0)
    boundary_f1 = compute_boundary_f1(true, predicted, num_classes, ignore_index, boundary_tolerance)
    return Agreement(confusion, compute_iou(confusion), image_iou, matrices, boundary_f1)


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


def compute_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class.

    Args:
        confusion: (C, C), rows true, columns predicted.

    Returns:
        (C,) in [0, 1]; NaN for a class without a true or predicted pixel: absent is neither right nor wrong.
    """
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(confusion), np.nan), where=union > 0)


def bootstrap_mean_iou(image_confusion: NDArray[np.int64], seed: int = 0, num_draws: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the dataset-level mIoU, images being what is drawn again.

    Args:
        image_confusion: (N, C, C) from `compute_agreement`.
        seed: of the draws.
        num_draws: resamples.

    Returns:
        Lower and upper end; NaN where no class occurs.
    """
    count, num_classes = image_confusion.shape[:2]
    rng = np.random.default_rng(seed)
    # How often each image is drawn, times its matrix: one product for all resamples.
    draws = rng.multinomial(count, np.full(count, 1 / count), size=num_draws)
    sums = (draws @ image_confusion.reshape(count, -1)).reshape(num_draws, num_classes, num_classes)
    values = np.array([nanmean(compute_iou(matrix)) for matrix in sums])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def compute_boundary_f1(
    true: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    ignore_index: int = 255,
    tolerance: float = 2.0,
) -> NDArray[np.float64]:
    """Boundary F1 of each class over a set of masks (Csurka et al. 2013, BMVC).

    Precision is the share of predicted boundary pixels within `tolerance` of a true one, recall the share of
    true ones within `tolerance` of a predicted one; both are pooled over the set. Ignored pixels hold no
    boundary.

    Args:
        true: (N, H, W) class indices or ignore_index.
        predicted: (N, H, W) class indices.
        tolerance: Euclidean distance in px.

    Returns:
        (C,) in [0, 1]; NaN for a class without any boundary.
    """
    # Rows: predicted boundary pixels that are met, predicted, true that are met, true.
    counts = np.zeros((4, num_classes))
    for t, p in zip(true, predicted, strict=True):
        counted = t != ignore_index
        for index in np.union1d(t[counted], p[counted]):
            true_edge = find_boundary(t == index) & counted
            predicted_edge = find_boundary(np.where(counted, p, t) == index) & counted
            counts[:, index] += [
                _count_near(predicted_edge, true_edge, tolerance),
                predicted_edge.sum(),
                _count_near(true_edge, predicted_edge, tolerance),
                true_edge.sum(),
            ]
    precision = counts[0] / np.maximum(counts[1], 1)
    recall = counts[2] / np.maximum(counts[3], 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where(counts[1] + counts[3] > 0, f1, np.nan)


def find_boundary(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region (H, W) with one of their 4 neighbours outside; the image's edge is no boundary."""
    return region & ~scipy.ndimage.binary_erosion(region, border_value=1)


def nanmean(values: NDArray[np.float64]) -> float:
    """The mean of the values that are defined; NaN, without a warning, where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _count_near(edge: NDArray[np.bool_], other: NDArray[np.bool_], tolerance: float) -> int:
    if not edge.any() or not other.any():
        return 0
    return int((scipy.ndimage.distance_transform_edt(~other)[edge] <= tolerance).sum())

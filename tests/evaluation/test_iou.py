"""Segmentation scores against matrices computed by hand, scipy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from steelgen.evaluation.iou import (
    bootstrap_scores,
    compute_boundary_f1,
    compute_confusion,
    compute_iou,
    compute_scores,
    count_boundaries,
    find_boundary,
)
from tests.evaluation.conftest import check_oracle

TRUE = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
PREDICTED = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)


def test_confusion_and_iou_by_hand() -> None:
    confusion = compute_confusion(TRUE, PREDICTED, 3)
    assert confusion.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    iou = compute_iou(confusion)
    assert iou[:2] == pytest.approx([3 / 5, 2 / 4])
    assert np.isnan(iou[2])


def test_a_false_class_scores_zero_and_an_absent_one_is_excluded() -> None:
    true = np.zeros((1, 2, 2), np.uint8)
    predicted = np.array([[[0, 0], [0, 1]]], np.uint8)
    scores = compute_scores(true, predicted, num_classes=3)
    assert scores.class_iou[:2] == pytest.approx([3 / 4, 0])
    assert np.isnan(scores.class_iou[2])
    assert scores.mean_iou == pytest.approx(3 / 8)


def test_dataset_miou_is_of_one_matrix_and_not_the_mean_over_images() -> None:
    true = np.stack([np.array([[0, 0, 0, 1]]), np.array([[1, 1, 1, 1]])]).astype(np.uint8)
    predicted = np.stack([np.array([[0, 0, 0, 0]]), np.array([[1, 1, 1, 1]])]).astype(np.uint8)
    scores = compute_scores(true, predicted, num_classes=2)
    assert scores.confusion.tolist() == [[3, 0], [1, 4]]
    check_oracle("mIoU by hand", scores.mean_iou, (3 / 4 + 4 / 5) / 2, atol=1e-12)
    check_oracle("mIoU per image by hand", scores.image_iou, [(3 / 4 + 0) / 2, 1.0], atol=1e-12)


def test_an_image_that_is_all_ignored_is_undefined() -> None:
    true = np.full((2, 3, 3), 255, np.uint8)
    true[1] = 0
    scores = compute_scores(true, np.zeros((2, 3, 3), np.uint8), num_classes=2)
    assert np.isnan(scores.image_iou[0])
    assert scores.image_iou[1] == 1.0
    assert scores.mean_iou == 1.0


def test_bootstrap_interval_of_the_dataset_miou() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, (60, 8, 8)).astype(np.uint8)
    flipped = rng.random((60, 1, 1)) * 0.4 > rng.random((60, 8, 8))
    scores = compute_scores(true, np.where(flipped, 1 - true, true), 2)
    intervals = bootstrap_scores(scores)
    low, high = intervals.mean_iou
    assert low < scores.mean_iou < high
    # The delta method on the accuracy of 60 images gives about the same width.
    accuracy = 1 - flipped.mean(axis=(1, 2))
    assert high - low == pytest.approx(4 * accuracy.std() / np.sqrt(60) * 1.5, rel=0.4)
    assert all(low < value < high for value, (low, high) in zip(scores.class_iou, intervals.class_iou, strict=True))
    assert intervals.mean_boundary_f1[0] < scores.mean_boundary_f1 < intervals.mean_boundary_f1[1]
    same = compute_scores(np.repeat(true[:1], 5, axis=0), np.repeat(1 - true[:1], 5, axis=0), 2)
    assert bootstrap_scores(same).mean_iou == pytest.approx((same.mean_iou, same.mean_iou))


def test_boundary_is_inside_the_region_and_not_at_the_image_border() -> None:
    region = np.zeros((4, 5), bool)
    region[:, :3] = True
    assert find_boundary(region).nonzero()[1].tolist() == [2, 2, 2, 2]


def test_boundary_counts_are_those_of_distance_transforms() -> None:
    from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

    rng = np.random.default_rng(2)
    true, predicted = ((gaussian_filter(rng.normal(size=(40, 50)), 2) > 0).astype(np.uint8)[None] for _ in range(2))
    edges = [part[0] * ~binary_erosion(part[0], border_value=1) > 0 for part in (true, predicted)]
    for tolerance in (0.0, 1.5, 2.0, 7.0):
        counts = count_boundaries(true, predicted, 2, tolerance=tolerance)[0, :, 1]
        near = [(distance_transform_edt(~edges[1 - i])[edges[i]] <= tolerance).sum() for i in (1, 0)]
        assert counts.tolist() == [near[0], edges[1].sum(), near[1], edges[0].sum()]


def test_boundary_f1_of_a_shifted_edge() -> None:
    def f1(true: np.ndarray, predicted: np.ndarray, tolerance: float = 2.0) -> np.ndarray:
        return compute_boundary_f1(count_boundaries(true, predicted, 2, tolerance=tolerance).sum(axis=0))

    true, predicted = np.zeros((1, 8, 20), np.uint8), np.zeros((1, 8, 20), np.uint8)
    true[..., 10:] = 1
    predicted[..., 13:] = 1
    assert f1(true, true) == pytest.approx([1, 1])
    assert f1(true, predicted) == pytest.approx([0, 0])
    assert f1(true, predicted, tolerance=3) == pytest.approx([1, 1])
    flat = np.zeros((1, 8, 20), np.uint8)
    assert np.isnan(f1(flat, flat)).all()


def test_confusion_agrees_with_torchmetrics_on_random_masks() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, (2, 5, 16, 16)).astype(np.uint8)
    true[0, :3] = 255
    expected = multiclass_jaccard_index(
        torch.from_numpy(predicted).long(), torch.from_numpy(true).long(), 4, average=None, ignore_index=255
    )
    measured = compute_scores(true, predicted, 4).class_iou
    check_oracle("IoU by torchmetrics, with ignored pixels", measured, expected, atol=1e-6)

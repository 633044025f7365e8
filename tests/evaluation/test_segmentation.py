"""The segmenter learns, is reproducible and is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from steelgen.config.evaluate import SegmenterSection
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.iou import compute_scores
from steelgen.evaluation.segmentation import (
    compute_class_weights,
    compute_segmentation_loss,
    load_or_train_segmenter,
    predict_masks,
    shrink_geometry,
    train_segmenter,
)

GEOMETRY = CropGeometry(image_size=32, crop_size=32)
QUICK = SegmenterSection(steps=25, batch_size=8, base_channels=8, num_levels=2, learning_rate=1e-2)


def test_segmenter_learns_bright_discs_and_is_reproducible(dataset: Path) -> None:
    train = load_micrographs(dataset, "train")
    segmenter = train_segmenter(train, GEOMETRY, QUICK, seed=1)
    images, masks = cut_crops(load_micrographs(dataset, "test"), GEOMETRY, 16)
    assert compute_scores(masks, predict_masks(segmenter, images), 2).mean_iou > 0.85
    again = train_segmenter(train, GEOMETRY, QUICK, seed=1)
    for name, value in segmenter.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_segmenter_is_trained_once_per_config(dataset: Path, tmp_path: Path) -> None:
    train = load_micrographs(dataset, "train")
    settings = QUICK.model_copy(update={"steps": 2})
    steps: list[int] = []

    def count(done: int, total: int) -> None:
        steps.append(done)

    first = load_or_train_segmenter(train, GEOMETRY, settings, tmp_path, report_progress=count)
    second = load_or_train_segmenter(train, GEOMETRY, settings, tmp_path, report_progress=count)
    assert steps == [1, 2]
    images = np.zeros((2, 32, 32), np.uint8)
    np.testing.assert_array_equal(predict_masks(first, images), predict_masks(second, images))
    load_or_train_segmenter(train, GEOMETRY, settings, tmp_path, seed=5, report_progress=count)
    assert steps == [1, 2, 1, 2]


def test_rare_classes_weigh_more_and_absent_ones_nothing() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :4] = 1
    mask[5:, 5:] = 255
    weights = compute_class_weights([mask], 3)
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(71 / 4))
    assert weights[2] == 0
    assert weights[:2].mean() == pytest.approx(1)


def test_loss_ignores_what_is_ignored() -> None:
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = torch.zeros(1, 4, 4, dtype=torch.long)
    masks[:, 2:] = 255
    compute_segmentation_loss(logits, masks, torch.ones(2), 255).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 2:, :] == 0).all()
    assert (logits.grad[..., :2, :] != 0).all()
    assert compute_segmentation_loss(logits, torch.full_like(masks, 255), torch.ones(2), 255) == 0


def test_the_loss_is_cross_entropy_dice_or_their_sum() -> None:
    torch.manual_seed(0)
    logits, masks, weights = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4)), torch.tensor([1.0, 2.0, 0.5])
    ce, dice, both = (
        compute_segmentation_loss(logits, masks, weights, 255, kind) for kind in ("ce", "dice", "ce+dice")
    )
    torch.testing.assert_close(ce, torch.nn.functional.cross_entropy(logits, masks, weights))
    p = logits.softmax(dim=1)
    by_class = [2 * p[:, c][masks == c].sum() / (p[:, c].sum() + (masks == c).sum()) for c in range(3)]
    torch.testing.assert_close(dice, 1 - torch.stack(by_class).mean())
    torch.testing.assert_close(both, ce + dice)


def test_large_images_are_learnt_from_smaller_crops_of_the_same_magnification() -> None:
    assert shrink_geometry(CropGeometry(256, 512), 96) == CropGeometry(96, 192)
    assert shrink_geometry(CropGeometry(64, 128), 96) == CropGeometry(64, 128)

"""The segmenter learns, is reproducible and is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from steelgen.config.segmenter import SegmenterSection
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry, apply_symmetry
from steelgen.errors import InputError
from steelgen.evaluation.iou import compute_scores
from steelgen.evaluation.prediction import Averaging, predict_masks, predict_probabilities
from steelgen.evaluation.segmentation import (
    choose_enlargement,
    compute_class_weights,
    compute_segmentation_loss,
    compute_widths,
    load_or_train_segmenter,
    measure_class_iou,
    resolve_settings,
    shrink_geometry,
    train_segmenter,
)

GEOMETRY = CropGeometry(image_size=32, crop_size=32)
QUICK = SegmenterSection(
    architecture="unet", enlargement=1, steps=25, batch_size=8, base_channels=8, num_levels=2, learning_rate=1e-2
)
PRETRAINED = SegmenterSection(steps=25, batch_size=4, enlargement=2)


@pytest.mark.parametrize("settings", [QUICK, PRETRAINED], ids=["unet", "pretrained"])
def test_segmenter_learns_bright_discs_and_is_reproducible(dataset: Path, settings: SegmenterSection) -> None:
    train = load_micrographs(dataset, "train")
    segmenter = train_segmenter(train, GEOMETRY, settings, seed=1)
    images, masks = cut_crops(load_micrographs(dataset, "test"), GEOMETRY, 16)
    assert compute_scores(masks, predict_masks(segmenter, images), 2).mean_iou > 0.85
    again = train_segmenter(train, GEOMETRY, settings, seed=1)
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
    settings = SegmenterSection(train_size=96, scale_range=(0.5, 2))
    assert shrink_geometry(CropGeometry(256, 512), settings, 484) == CropGeometry(96, 192, (0.5, 2))
    assert shrink_geometry(CropGeometry(64, 128, (0.8, 1.5)), settings, 484) == CropGeometry(64, 128, (0.4, 3))
    assert shrink_geometry(CropGeometry(64, 128), settings, 40) == CropGeometry(40, 80, (0.5, 2))


def test_widths_are_those_of_stripes_and_discs() -> None:
    stripes = np.zeros((300, 300), np.uint8)
    # A stripe at 30°, 6 px thick: the boundary's length comes from counts along rows and columns alone.
    rows, columns = np.mgrid[:300, :300]
    across = rows * np.cos(np.pi / 6) - columns * np.sin(np.pi / 6)
    stripes[np.abs(across - 80) < 3] = 1
    # π/4 is the mean over directions; at 30° rows and columns part cos 30° + sin 30° times the length.
    expected = 6 / (np.pi / 4 * (np.cos(np.pi / 6) + np.sin(np.pi / 6)))
    assert compute_widths([stripes], 3)[1] == pytest.approx(expected, rel=0.03)
    disc = ((rows - 150) ** 2 + (columns - 150) ** 2 < 60**2).astype(np.uint8)
    # Twice its area over its circumference is its radius.
    np.testing.assert_allclose(compute_widths([disc, disc], 3)[1:], [60, np.nan], rtol=0.02)


@pytest.mark.parametrize(
    ("width", "crop", "factor"),
    [(8, 32, 1), (3, 32, 1), (2, 32, 1.25), (1, 32, 2), (8, 64, 1), (4, 64, 1.25), (3, 64, 1.75)],
)
def test_images_are_enlarged_until_the_thinnest_class_is_seen(width: int, crop: int, factor: float) -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 50 : 50 + width] = 1
    mask[:, 120:200] = 2
    micrographs = Micrographs(DatasetInfo(name="x", class_names=["a", "b", "c", "d"]), ["m"], [mask], [mask])
    # Upright boundaries are parted by rows alone: the formula takes them for 4/π times as wide.
    seen = compute_widths([mask], 4)[1] * 32 / crop
    assert seen == pytest.approx(4 / np.pi * width * 32 / crop)
    found = choose_enlargement(micrographs, CropGeometry(32, crop))
    assert found == factor
    settings = resolve_settings(SegmenterSection(), micrographs, CropGeometry(32, crop))
    assert settings.enlargement == found
    assert resolve_settings(QUICK, micrographs, CropGeometry(32, crop)) is QUICK


def test_views_are_turned_back_and_averaged() -> None:
    torch.manual_seed(0)
    images, bias = torch.rand(2, 1, 6, 6), torch.rand(1, 3, 6, 6)

    def segmenter(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x**2, 1 - x], dim=1) * 3 + bias

    expected = np.zeros((2, 3, 6, 6))
    for symmetry in range(8):
        turned = np.stack([apply_symmetry(image[0].numpy(), symmetry) for image in images])[:, None]
        seen = segmenter(torch.from_numpy(turned)).softmax(dim=1).numpy()
        inverse = next(s for s in range(8) if np.array_equal(apply_symmetry(turned[0, 0], s), images[0, 0].numpy()))
        expected += np.stack(
            [[apply_symmetry(channel, inverse) for channel in probabilities] for probabilities in seen]
        )
    found = predict_probabilities(segmenter, images, Averaging(flips=True))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), expected / 8, atol=1e-6)


def test_views_of_other_scales_are_averaged_at_the_images_size() -> None:
    shapes = []

    def segmenter(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape[-2:]))
        return torch.cat([x, -x], dim=1)

    image = torch.linspace(-1, 1, 40)[None, None, None, :].repeat(1, 1, 20, 1)
    found = predict_probabilities(segmenter, image, Averaging(scales=(0.5, 1.0, 1.5)))  # type: ignore[arg-type]
    assert shapes == [(10, 20), (20, 40), (30, 60)]
    torch.testing.assert_close(found[:, :1], torch.sigmoid(2 * image), rtol=0, atol=0.02)


def test_a_segmenter_says_what_it_finds_on_held_out_micrographs(dataset: Path) -> None:
    test = load_micrographs(dataset, "test")

    class Threshold(torch.nn.Module):
        def __init__(self, limit: float) -> None:
            super().__init__()
            self.limit = torch.nn.Parameter(torch.tensor(limit))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.limit - images, images - self.limit], dim=1)

    # Discs are 90 gray levels brighter than their ground, whose noise has a deviation of 10.
    good = measure_class_iou(Threshold(125 / 127.5 - 1), test, GEOMETRY, Averaging())
    blind = measure_class_iou(Threshold(2.0), test, GEOMETRY, Averaging())
    assert good.min() > 0.98
    assert blind[1] == 0


def test_micrographs_without_masks_are_one_line(dataset: Path) -> None:
    micrographs = load_micrographs(dataset, "train")
    bare = Micrographs(
        DatasetInfo(name="bare", class_names=[]), micrographs.stems, micrographs.images, micrographs.masks
    )
    with pytest.raises(InputError, match="bare: has no masks to train a segmenter on"):
        train_segmenter(bare, GEOMETRY, QUICK)

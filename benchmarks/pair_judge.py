"""Scores of images generated for masks of uhcs that no generator has seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_base import UHCS

from steelgen.config.segmenter import SegmenterSection
from steelgen.config.solver import SolverSection
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.palette import color_mask
from steelgen.data.placement import CropGeometry
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid, compute_precision_recall
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import can_judge, compute_scores
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.evaluation.prediction import predict_masks
from steelgen.evaluation.segmentation import load_or_train_segmenter
from steelgen.files import default_cache_dir
from steelgen.generators import Generator
from steelgen.generators.drawing import draw_for_masks

GEOMETRY = CropGeometry(64, 128)
SEARCHED = 32
"""Images searched for copies."""

Images = NDArray[np.uint8]


class Judge:
    """Scores images for masks of the validation split.

    The mean IoU is that of the classes that the segmenter finds in real crops; see `can_judge`.

    Args:
        count: number of masks, and of real crops of the test split.
        steps: of the segmenter that judges masks.
    """

    def __init__(self, count: int, steps: int) -> None:
        training, validation, test = (load_micrographs(UHCS, split) for split in ("train", "val", "test"))
        self.info = training.info
        self.real, self.masks = cut_crops(validation, GEOMETRY, count)
        self._extractor = build_extractor("efficientnet-lite0")
        self._features = compute_features(cut_crops(test, GEOMETRY, count, seed=1)[0], self._extractor)
        self._search = CopySearch(training, GEOMETRY, 32)
        settings = SegmenterSection(steps=steps)
        self._segmenter = load_or_train_segmenter(training, GEOMETRY, settings, default_cache_dir())
        self._judged = [can_judge(iou) for iou in self._find_iou(self.real)]
        seen = cut_crops(training, GEOMETRY, count)[0]
        chance = self._average(self._find_iou(np.roll(self.real, 1, axis=0)))
        self.floor = {**self._compare(seen), **self._see(self.real), "chance": chance}
        """Of real images; "chance" is the mean IoU of crops and the masks of others."""

    def score(self, images: Images) -> dict[str, Any]:
        """Scores an image (64, 64) per mask: KID, precision, recall, copies, and the masks that the segmenter sees."""
        return {**self._compare(images), **self._see(images)}

    def _compare(self, images: Images) -> dict[str, float]:
        features = compute_features(images, self._extractor)
        kid, spread = compute_kid(self._features, features)
        precision, recall = compute_precision_recall(self._features, features)
        return {"kid": kid, "kid_std": spread, "precision": precision, "recall": recall}

    def _see(self, images: Images) -> dict[str, Any]:
        ious = self._find_iou(images)
        copies = np.mean([match.ratio < COPY_RATIO for match in self._search.find(images[:SEARCHED])])
        return {"mask_iou": self._average(ious), "class_iou": to_json(ious), "copies": float(copies)}

    def _average(self, ious: NDArray[np.float64]) -> float:
        return float(np.nanmean(ious[self._judged]))

    def _find_iou(self, images: Images) -> NDArray[np.float64]:
        info, predicted = self.info, predict_masks(self._segmenter, images)
        return compute_scores(self.masks, predicted, info.num_classes, info.ignore_index).class_iou


def draw_images(
    generator: Generator,
    masks: Images,
    solver: SolverSection,
    seed: int,
    take: Callable[[slice], dict[str, Any]] = lambda part: {},
) -> tuple[Images, float]:
    """Draws an image per mask; also returns images per CPU second.

    Args:
        take: further fields of the `DrawRequest` of a part of the masks.
    """
    images, start_time = [], time.process_time()
    for start in range(0, len(masks), 16):
        part = slice(start, start + 16)
        batch = torch.from_numpy(masks[part].astype(np.int64))
        seeds = [10_000 * seed + start + index for index in range(len(batch))]
        images += [tensor_to_image(image) for image in draw_for_masks(generator, batch, seeds, solver, **take(part))]
    return np.stack(images), len(images) / (time.process_time() - start_time)


def save_picture(path: Path, judge: Judge, images: Images) -> None:
    """Writes rows of masks, images for them and the real crops."""
    masks = [color_mask(mask, judge.info.palette) for mask in judge.masks[:12]]
    save_image(path, build_sheet([masks, list(images[:12]), list(judge.real[:12])], 128))

"""Filtering of generated pairs.

A pair is dropped if a segmenter trained on real micrographs disagrees with the mask (as in FreeMask, Yang et al. 2023,
arXiv 2310.15160, which filters pixels), if the image is a near-copy of a training micrograph, or if what the pair
teaches does not agree with real held-out crops. The decision depends only on the pair, so batches, shards, and resumed
runs agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.sample import FilterSection
from steelgen.data.crops import Micrographs, cut_crops
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.gain import GainJudge
from steelgen.evaluation.iou import MIN_REAL_IOU, compute_confusion, compute_iou
from steelgen.evaluation.prediction import averaging_of, predict_masks
from steelgen.evaluation.segmentation import compute_class_weights, load_or_train_segmenter, measure_class_iou
from steelgen.files import default_cache_dir
from steelgen.sampling.masks import load_source

NEAR_COPY = "near copy of a training image"
LOW_GAIN = "teaches otherwise than real crops"


class PairFilter:
    """Decides which pairs of image and mask to keep.

    Args:
        config: thresholds.
        segmenter: (N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W); None disables the check of masks.
        copies: search for near-copies; None disables it.
        info: classes of the masks.
        real_iou: the segmenter's IoU of each class on real held-out micrographs, if measured. Classes below
            `MIN_REAL_IOU` are not checked.
        gain: compares pairs with held-out crops; None disables the check.
    """

    def __init__(
        self,
        config: FilterSection,
        segmenter: torch.nn.Module | None,
        copies: CopySearch | None,
        info: DatasetInfo,
        real_iou: NDArray[np.float64] | None = None,
        gain: GainJudge | None = None,
    ) -> None:
        self._gain = gain
        self._config, self._segmenter, self._copies, self._info = config, segmenter, copies, info
        self._real_iou = real_iou
        thresholds = resolve_thresholds(config.min_iou, info)
        self._unseen = [] if real_iou is None else [index for index, iou in enumerate(real_iou) if iou < MIN_REAL_IOU]
        self._min_iou = [0.0 if index in self._unseen else limit for index, limit in enumerate(thresholds)]

    def describe(self) -> dict[str, Any]:
        """Returns the thresholds in effect, the segmenter's own IoU, and unchecked classes, for filter.json."""
        names = self._info.class_names
        return {
            "min_iou": dict(zip(names, self._min_iou, strict=True)),
            "real_iou": None if self._real_iou is None else dict(zip(names, to_json(self._real_iou), strict=True)),
            "not_judged": [names[index] for index in self._unseen],
        }

    def judge(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> str | None:
        """Returns the reason for dropping a pair; None to keep it.

        Args:
            image: (H, W) or (H, W, 3) uint8.
            mask: (H, W) class indices or ignore_index.
        """
        if self._segmenter is not None:
            # One image at a time, since the batch size affects the last bits and could flip a pixel.
            predicted = predict_masks(self._segmenter, image[None], averaging_of(self._config.segmenter))[0]
            failed = find_disagreement(mask, predicted, self._min_iou, self._config.min_share, self._info.ignore_index)
            if failed is not None:
                return f"segmenter disagrees on {self._info.class_names[failed]}"
        limit = self._config.max_correlation
        if self._copies is not None and self._copies.correlate(image, limit).correlation > limit:
            return NEAR_COPY
        return None

    def weigh(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> dict[str, float] | None:
        """Returns the gain of a pair, and its weight if it has one, for metadata.jsonl; empty without a check of gains.

        Args:
            image, mask: see `judge`.

        Returns:
            None to drop the pair, because of `LOW_GAIN`.
        """
        section = self._config.gain
        if self._gain is None or section is None:
            return {}
        gain = round(self._gain.measure(image, mask), 6)
        if gain < section.min_agreement:
            return None
        return {"gain": gain, "pair_weight": max(gain, 0.0)} if section.weigh else {"gain": gain}


def build_filter(
    config: FilterSection,
    info: DatasetInfo,
    geometry: CropGeometry,
    report: Callable[[int, int], None] | None = None,
) -> PairFilter:
    """Trains the segmenter or loads it from the cache, and prepares the search for near-copies.

    The segmenter's IoU is measured on real crops of val or test, whichever exists first and was not trained on; classes
    it cannot find there are not checked.

    Args:
        config: thresholds.
        info: classes of the masks.
        geometry: geometry of the images.
        report: receives (steps done, total steps) of the segmenter's training.

    Raises:
        InputError: if the dataset cannot be used, has other classes, or a threshold names an unknown class.
    """
    thresholds = resolve_thresholds(config.min_iou, info)
    micrographs = load_source(config.dataset, config.split, info, geometry.in_channels)
    gain = _build_gain(config, micrographs, info, geometry, report) if config.gain else None
    device = str(pick_device())
    segmenter, real_iou = None, None
    if max(thresholds) > 0:
        segmenter = load_or_train_segmenter(
            micrographs, geometry, config.segmenter, default_cache_dir(), config.seed, device, report
        )
        held_out = next(
            (split for split in ("val", "test") if split != config.split and (config.dataset / split).is_dir()), None
        )
        if held_out:
            real = load_source(config.dataset, held_out, info, geometry.in_channels)
            real_iou = measure_class_iou(segmenter, real, geometry, averaging_of(config.segmenter), config.seed)
    copies = (
        CopySearch(micrographs, geometry, scale_range=geometry.scale_range, blur=1.0)
        if config.max_correlation < 1
        else None
    )
    return PairFilter(config, segmenter, copies, info, real_iou, gain)


def _build_gain(
    config: FilterSection,
    micrographs: Micrographs,
    info: DatasetInfo,
    geometry: CropGeometry,
    report: Callable[[int, int], None] | None,
) -> GainJudge:
    """Trains the segmenter of the gains briefly on `micrographs`, and cuts crops of the validation split."""
    assert config.gain is not None
    held_out = load_source(config.dataset, "val", info, geometry.in_channels)
    settings = config.segmenter.model_copy(update={"steps": config.gain.steps})
    segmenter = load_or_train_segmenter(
        micrographs, geometry, settings, default_cache_dir(), config.seed, str(pick_device()), report
    )
    images, masks = cut_crops(held_out, geometry, config.gain.crops, config.seed)
    return GainJudge(
        segmenter, images, masks, compute_class_weights(micrographs.masks, info.num_classes), info.ignore_index
    )


def find_disagreement(
    mask: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    min_iou: list[float],
    min_share: float,
    ignore_index: int = 255,
) -> int | None:
    """Returns the first class whose IoU is below its threshold; None if there is none.

    Args:
        mask: (H, W) class indices or ignore_index.
        predicted: (H, W) class indices.
        min_iou: one threshold per class, in [0, 1]; 0 disables the check.
        min_share: classes that cover less than this fraction of the counted pixels in both masks are not checked.
        ignore_index: mask value of ignored pixels.
    """
    confusion = compute_confusion(mask, predicted, len(min_iou), ignore_index)
    share = np.maximum(confusion.sum(axis=0), confusion.sum(axis=1)) / max(int(confusion.sum()), 1)
    iou = compute_iou(confusion)
    short = np.flatnonzero((share > 0) & (share >= min_share) & (np.nan_to_num(iou) < np.array(min_iou)))
    return int(short[0]) if short.size else None


def resolve_thresholds(min_iou: float | dict[str, float], info: DatasetInfo) -> list[float]:
    """Returns one threshold per class; 0 for classes not named.

    Raises:
        InputError: if a class is unknown.
    """
    if not isinstance(min_iou, dict):
        return [min_iou] * info.num_classes
    for name in min_iou:
        if name not in info.class_names:
            raise InputError(f"filter.min_iou: {name!r} is not among the classes {', '.join(info.class_names)}")
    return [min_iou.get(name, 0.0) for name in info.class_names]

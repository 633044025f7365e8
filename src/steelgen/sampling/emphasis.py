"""Emphasis of masks with classes that a segmenter gets wrong on validation micrographs, or is unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.config.steering import EmphasisSection
from steelgen.data.folder import DatasetInfo
from steelgen.errors import InputError
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_confusion, compute_iou
from steelgen.evaluation.labeler import label_micrograph, load_labeler
from steelgen.evaluation.segment import load_validation
from steelgen.sampling.masks import BatchedMaskSource, MaskSource, SourceMask

_STREAM = 10
"""Separates the random stream from those of crops and masks."""
_DIGITS = 6
"""Decimals of errors and shares. Shards on machines that differ in the last bits choose the same masks."""


@dataclass(frozen=True)
class ClassErrors:
    """What a segmenter gets wrong on validation micrographs, or is unsure of."""

    info: DatasetInfo
    errors: NDArray[np.float64]
    """(C,) 1 − IoU, or mean of 1 − confidence over the pixels of the class, in [0, 1]; NaN for absent classes."""
    shares: NDArray[np.float64]
    """(C,) fractions of the labeled pixels."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """(C,) weight of a pixel by its class: error over share, so that a rare class counts as much as a common one,
        as in mIoU. The mean over the validation pixels is 1; classes without an error of their own have 1."""
        known = np.isfinite(self.errors) & (self.shares > 0)
        total = self.errors[known].sum()
        if not total:
            return np.ones(len(self.errors))
        weights = np.ones(len(self.errors))
        weights[known] = self.shares[known].sum() * self.errors[known] / (self.shares[known] * total)
        return weights

    def describe(self) -> dict[str, Any]:
        """Returns the values by class name, for emphasis.json."""
        values = {"error": self.errors, "share": self.shares, "weight": self.weights.round(_DIGITS)}
        return {name: dict(zip(self.info.class_names, to_json(each), strict=True)) for name, each in values.items()}


def measure_class_errors(config: EmphasisSection, info: DatasetInfo) -> ClassErrors:
    """Applies a segmenter to the validation micrographs that it was not trained on; reads no other split.

    Args:
        config: the segmenter and the kind of error.
        info: classes of the masks.

    Raises:
        InputError: if the segmenter cannot be loaded, has other classes, or has no validation micrographs.
    """
    labeler = load_labeler(config.segmenter)
    if labeler.info.class_names != info.class_names:
        own, theirs = (", ".join(each.class_names) or "no classes" for each in (labeler.info, info))
        raise InputError(f"emphasis.segmenter: {config.segmenter} has the classes {own}, not {theirs}")
    micrographs = load_validation(labeler.config)
    if micrographs is None:
        raise InputError(
            f"emphasis.segmenter: {config.segmenter}: {labeler.config.dataset} has no validation split "
            f"{labeler.config.val_split!r}; train a segmenter with val_split"
        )
    confusion = np.zeros((info.num_classes, info.num_classes), np.int64)
    doubt = np.zeros(info.num_classes)
    for image, mask in zip(micrographs.images, micrographs.masks, strict=True):
        predicted, confidence = label_micrograph(labeler, image)
        confusion += compute_confusion(mask, predicted, info.num_classes, micrographs.info.ignore_index)
        doubt += np.bincount(mask.ravel(), 1.0 - confidence.ravel(), minlength=256)[: info.num_classes]
    areas = confusion.sum(axis=1)
    if not areas.any():
        raise InputError(f"emphasis.segmenter: the validation micrographs of {labeler.config.dataset} have no labels")
    means = doubt / np.maximum(areas, 1) if config.measure == "doubt" else 1 - compute_iou(confusion)
    errors = np.where(areas > 0, means, np.nan)
    return ClassErrors(info, errors.round(_DIGITS), (areas / areas.sum()).round(_DIGITS))


class EmphasizedSource:
    """A mask source that chooses each mask among candidates of another; mask i is a pure function of i.

    Mask i is one of the candidates i·k to i·k + k − 1, with a chance in proportion to its weight: 1 − strength +
    strength · mean weight of its pixels (sampling-importance resampling, Rubin 1987).

    Args:
        source: makes the candidates.
        errors: what masks are weighted by.
        config: strength and number of candidates k.
        seed: seed of the choice.
    """

    def __init__(self, source: MaskSource, errors: ClassErrors, config: EmphasisSection, seed: int) -> None:
        self._source, self._config, self._seed = source, config, seed
        self._weights = np.ones(256)
        self._weights[: len(errors.weights)] = errors.weights
        self._ignore_index = errors.info.ignore_index

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        return self._choose(index, [self._source.draw(number) for number in self._candidates(index)])

    def weigh(self, mask: NDArray[np.uint8]) -> float:
        """Computes the weight of a mask (H, W); ignored pixels do not count."""
        labeled = mask[mask != self._ignore_index]
        mean = float(self._weights[labeled].mean()) if labeled.size else 1.0
        return 1 - self._config.strength + self._config.strength * mean

    def _candidates(self, index: int) -> range:
        count = self._config.candidates
        return range(index * count, (index + 1) * count)

    def _choose(self, index: int, candidates: Sequence[SourceMask]) -> SourceMask:
        weights = np.array([self.weigh(candidate.mask) for candidate in candidates])
        if not weights.any():
            weights[:] = 1.0
        rng = np.random.default_rng((self._seed, index, _STREAM))
        chosen = int(rng.choice(len(candidates), p=weights / weights.sum()))
        return replace(candidates[chosen], emphasis=round(float(weights[chosen]), _DIGITS))


class EmphasizedBatches(EmphasizedSource):
    """`EmphasizedSource` of a `BatchedMaskSource`."""

    _source: BatchedMaskSource

    def draw_batch(self, indices: Sequence[int]) -> list[SourceMask]:
        """See `BatchedMaskSource.draw_batch`."""
        return [self._choose(index, self._source.draw_batch(list(self._candidates(index)))) for index in indices]


def emphasize(source: MaskSource, errors: ClassErrors, config: EmphasisSection, seed: int) -> MaskSource:
    """Wraps a mask source of any kind."""
    kind = EmphasizedBatches if isinstance(source, BatchedMaskSource) else EmphasizedSource
    return kind(source, errors, config, seed)

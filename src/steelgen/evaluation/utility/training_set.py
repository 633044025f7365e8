"""The training images of one network of a utility study."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.utility import DataCode, UtilityTrainingSection
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.copy_paste import PastedCrops
from steelgen.data.crops import CropDataset
from steelgen.data.placement import Variation
from steelgen.errors import InputError
from steelgen.evaluation.segmentation import augment_batch
from steelgen.evaluation.utility.data import StudyData, count_data, join_micrographs

_REAL_STREAM, _GENERATED_STREAM = 11, 12
"""Separate random streams under one seed."""


def choose_subset(total: int, count: int, seed: int, stream: int = _REAL_STREAM) -> list[int]:
    """First `count` of a permutation of `total` indices by the seed, sorted; larger subsets contain smaller ones."""
    order = np.random.default_rng((seed, stream)).permutation(total)
    return sorted(int(index) for index in order[:count])


class TrainingSet:
    """Infinite sequence of training images of one code and seed; item n is a pure function of both.

    Real crop k does not depend on the generated pairs: a code with generated pairs sees the same real crops in the same
    order as the code without, only later.
    """

    def __init__(self, data: StudyData, code: DataCode, seed: int, settings: UtilityTrainingSection) -> None:
        num_real, num_generated = count_data(code, data)
        self.augmentation, self.seed = settings.augmentation, seed
        rare_share = self.augmentation.rare_share if self.augmentation else 0.0
        variation = None if self.augmentation else Variation(brightness=settings.brightness, contrast=settings.contrast)
        self.real: CropDataset | None = None
        self.generated: CropDataset | None = None
        if num_real:
            micrographs = data.train.select(choose_subset(len(data.train), num_real, seed))
            if code.predicted:
                assert data.predicted is not None
                micrographs = join_micrographs([micrographs, data.predicted])
            crops = micrographs, data.geometry, seed, rare_share, settings.augment, variation
            self.real = PastedCrops(settings.paste, *crops) if code.pasted else BalancedCrops(*crops)
        if num_generated:
            assert data.generated is not None
            chosen = choose_subset(len(data.generated), num_generated, seed, _GENERATED_STREAM)
            pairs = data.generated.select(chosen)
            whole = replace(data.geometry, crop_size=data.geometry.image_size, scale_range=(1.0, 1.0))
            weights = None if data.weights is None else data.weights[chosen]
            if weights is not None and not weights.any():
                raise InputError(
                    f"codes: {code.text}: all of the {num_generated} pairs of seed {seed} have pair_weight 0"
                )
            self.generated = BalancedCrops(pairs, whole, seed, rare_share, settings.augment, variation, weights)
        self.real_share, self.pretraining = float(self.real is not None), 0
        if self.real is not None and self.generated is not None:
            self.real_share = settings.real_share or len(self.real) / (len(self.real) + len(self.generated))
            if settings.schedule == "pretrain":
                self.pretraining = round(settings.pretrain_share * settings.steps * settings.batch_size)

    @property
    def masks(self) -> list[NDArray[np.uint8]]:
        """All masks, for the class weights of the loss."""
        parts = [part for part in (self.real, self.generated) if part is not None]
        return [mask for part in parts for mask in part.micrographs.masks]

    def pick(self, number: int) -> tuple[CropDataset, int]:
        """Set of item `number`, and the number of its crop there."""
        if number < self.pretraining:
            assert self.generated is not None
            return self.generated, number
        share = 1.0 if self.pretraining else self.real_share
        number -= self.pretraining
        # Evenly mixed: ⌊k · share⌋ of the first k items are real.
        before, after = math.floor(number * share), math.floor((number + 1) * share)
        chosen = self.real if after > before else self.generated
        assert chosen is not None
        return chosen, before if after > before else number - before

    def sample_batch(self, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch of step `step`, from 0.

        Returns:
            images: (N, C, S, S) in [-1, 1]; masks: (N, S, S) int64 class indices or ignore_index.
        """
        picked = [self.pick(number) for number in range(step * batch_size, (step + 1) * batch_size)]
        items = [crops[number] for crops, number in picked]
        images, masks = (torch.stack([item[name] for item in items]) for name in ("image", "mask"))
        if self.augmentation is None:
            return images, masks
        return augment_batch(images, masks, self.augmentation, self.seed, step)

"""What the networks of a utility study are trained, validated and tested on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.utility import DataCode, UtilityConfig, UtilityTrainingSection, parse_code
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.classes import declare_classes
from steelgen.data.crops import CropDataset, Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info
from steelgen.data.placement import CropGeometry, Variation
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.segmentation import augment_batch
from steelgen.evaluation.sets import GeneratedFolder, find_generated, load_generated, resolve_geometry

_REAL_STREAM, _GENERATED_STREAM, _VALIDATION_STREAM = 11, 12, 13
"""Keep the orders of micrographs, of generated pairs and of validation apart under one seed."""


@dataclass(frozen=True)
class StudyData:
    """The real splits and the generated pairs, all decoded."""

    info: DatasetInfo
    geometry: CropGeometry
    train: Micrographs
    val: Micrographs
    test: Micrographs
    generated: Micrographs | None
    """Pairs of image_size px; None where no code needs them."""
    notes: list[str]
    """What was assumed or converted."""

    @property
    def num_generated(self) -> int:
        """Generated pairs there are."""
        return 0 if self.generated is None else len(self.generated)

    def compute_hash(self) -> str:
        """SHA-256 of everything that networks see, in the order in which they see it."""
        sets = [self.train, self.val, self.test, *([self.generated] if self.generated else [])]
        return _hash_sets(sets)

    def describe_inputs(self) -> dict[str, str]:
        """By field of the config, the hash of what networks see of it."""
        hashes = {"dataset": _hash_sets([self.train, self.val, self.test])}
        return {**hashes, "generated": _hash_sets([self.generated])} if self.generated else hashes


def load_study(config: UtilityConfig) -> StudyData:
    """Reads the real splits and the generated pairs of a study.

    Raises:
        InputError: if a split or the generated folder cannot be used, their classes differ, or a code asks for more
            than there is.
    """
    found = find_generated(config.generated, config.generated_masks) if config.generated else None
    if found and found.masks is None:
        raise InputError(f"{config.generated}: holds no masks (labels/ or masks/), which training needs")
    geometry, notes = _resolve_geometry(config, found)
    splits = [load_micrographs(config.dataset, config.train_split, geometry.in_channels)]
    if config.val_split is None:
        splits += hold_back(splits.pop(), config.val_share)
    else:
        splits.append(load_micrographs(config.dataset, config.val_split, geometry.in_channels))
    splits.append(load_micrographs(config.dataset, config.test_split, geometry.in_channels))
    if config.num_classes:
        splits = [replace(s, info=declare_classes(s.info, config.num_classes, config.dataset)) for s in splits]
    train, val, test = splits
    generated = None
    if found:
        assert config.generated is not None
        _check_classes(config.generated, train.info, config.dataset)
        images, more = load_generated(found, geometry, train.info)
        assert images.masks is not None
        notes += more + _compare_scales(found, geometry, min(min(mask.shape) for mask in train.masks))
        generated = Micrographs(train.info, images.names, list(images.images), list(images.masks))
    data = StudyData(train.info, geometry, train, val, test, generated, notes)
    for text in config.codes:
        count_data(parse_code(text), data)
    return data


def count_data(code: DataCode, data: StudyData) -> tuple[int, int]:
    """The micrographs and the generated pairs that a code stands for.

    Raises:
        InputError: if there are fewer.
    """
    try:
        return code.count_real(len(data.train)), code.count_generated(data.num_generated)
    except ValueError as error:
        raise InputError(f"codes: {error}") from None


def hold_back(micrographs: Micrographs, share: float) -> list[Micrographs]:
    """Splits off a share of the micrographs, at least one, the same for every seed of a study.

    Returns:
        What is left to train on, and what was held back.

    Raises:
        InputError: if nothing would be left.
    """
    count = count_held_back(len(micrographs), share)
    if count >= len(micrographs):
        raise InputError(
            f"{micrographs.info.name}: {len(micrographs)} training micrographs, none is left when {count} are "
            "held back for validation; name a val_split"
        )
    order = np.random.default_rng(_VALIDATION_STREAM).permutation(len(micrographs))
    return [micrographs.select(sorted(part)) for part in (order[count:], order[:count])]


def count_held_back(total: int, share: float) -> int:
    """How many of `total` micrographs `hold_back` takes."""
    return max(1, round(total * share))


def choose_subset(total: int, count: int, seed: int, stream: int = _REAL_STREAM) -> list[int]:
    """`count` of `total` indices, sorted: the first of a permutation by the seed, so larger sets hold the smaller."""
    order = np.random.default_rng((seed, stream)).permutation(total)
    return sorted(int(index) for index in order[:count])


class TrainingSet:
    """The endless sequence of training images of one code under one seed; item n is a pure function of both.

    Real crop k is the same whatever else is trained on: a code with generated pairs sees the crops of the code
    without, in the same order, later.

    Args:
        data: of the study.
        code: which part of it.
        seed: of the subset and the crops.
        settings: augmentation and mixture.
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
            self.real = BalancedCrops(micrographs, data.geometry, seed, rare_share, settings.augment, variation)
        if num_generated:
            assert data.generated is not None
            chosen = choose_subset(len(data.generated), num_generated, seed, _GENERATED_STREAM)
            pairs = data.generated.select(chosen)
            whole = replace(data.geometry, crop_size=data.geometry.image_size, scale_range=(1.0, 1.0))
            self.generated = BalancedCrops(pairs, whole, seed, rare_share, settings.augment, variation)
        self.real_share = self._mix(settings.real_share)
        total = settings.steps * settings.batch_size
        both = self.real is not None and self.generated is not None
        self.pretraining = round(settings.pretrain_share * total) if settings.schedule == "pretrain" and both else 0

    @property
    def masks(self) -> list[NDArray[np.uint8]]:
        """All masks, by whose classes the loss is weighted."""
        parts = [part for part in (self.real, self.generated) if part is not None]
        return [mask for part in parts for mask in part.micrographs.masks]

    def pick(self, number: int) -> tuple[CropDataset, int]:
        """The set that item `number` comes from, and its number there."""
        if number < self.pretraining:
            assert self.generated is not None
            return self.generated, number
        share = 1.0 if self.pretraining else self.real_share
        number -= self.pretraining
        # As even as can be: among the first k items there are ⌊k · share⌋ real ones.
        before, after = math.floor(number * share), math.floor((number + 1) * share)
        chosen = self.real if after > before else self.generated
        assert chosen is not None
        return chosen, before if after > before else number - before

    def sample_batch(self, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `step`, from 0.

        Returns:
            images: (N, C, S, S) in [-1, 1]; masks: (N, S, S) int64 class indices or ignore_index.
        """
        items = []
        for number in range(step * batch_size, (step + 1) * batch_size):
            dataset, crop = self.pick(number)
            items.append(dataset[crop])
        images, masks = (torch.stack([item[name] for item in items]) for name in ("image", "mask"))
        return (
            augment_batch(images, masks, self.augmentation, self.seed, step) if self.augmentation else (images, masks)
        )

    def _mix(self, wanted: float | None) -> float:
        if self.real is None or self.generated is None:
            return 0.0 if self.real is None else 1.0
        return wanted or len(self.real) / (len(self.real) + len(self.generated))


def _hash_sets(sets: list[Micrographs]) -> str:
    arrays = [array for part in sets for array in (*part.images, *part.masks)]
    return hash_arrays(*arrays, text=str([part.stems for part in sets]))


def _resolve_geometry(config: UtilityConfig, found: GeneratedFolder | None) -> tuple[CropGeometry, list[str]]:
    if found:
        return resolve_geometry(found, config.geometry)
    section = config.geometry
    if section.image_size is None:
        raise InputError("geometry.image_size: is missing; there are no generated images to take it from")
    return (
        CropGeometry(
            section.image_size,
            section.crop_size or section.image_size,
            section.scale_range or (1.0, 1.0),
            section.in_channels or 1,
        ),
        [],
    )


def _check_classes(generated: Path, info: DatasetInfo, dataset: Path) -> None:
    if not (generated / "dataset.json").is_file():
        return
    names = load_dataset_info(generated).class_names
    if names != info.class_names:
        raise InputError(
            f"{generated}: its classes are {', '.join(names)}, those of {dataset} are {', '.join(info.class_names)}"
        )


def _compare_scales(found: GeneratedFolder, geometry: CropGeometry, smallest: int) -> list[str]:
    """A sentence where generated images were drawn at another magnification than real crops are cut at.

    Args:
        found: with its sampling.json.
        geometry: of the study.
        smallest: edge of the smallest micrograph, px, which bounds every crop.
    """
    if found.sampling.crop_size is None or found.sampling.image_size is None:
        return []
    drawn = min(found.sampling.crop_size, smallest) / found.sampling.image_size
    cut = min(geometry.crop_size, smallest) / geometry.image_size
    if math.isclose(drawn, cut):
        return []
    return [f"generated images show {drawn:g} px of a micrograph a pixel, the real crops {cut:g}"]

"""Training, validation and test data of a utility study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.utility import FOLD, DataCode, UtilityConfig, UtilityTrainingSection, parse_code
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.classes import declare_classes
from steelgen.data.copy_paste import PastedCrops
from steelgen.data.crops import CropDataset, Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_metadata
from steelgen.data.placement import CropGeometry, Variation
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.labeled_folders import PREDICTED
from steelgen.evaluation.segmentation import augment_batch
from steelgen.evaluation.sets import (
    GeneratedFolder,
    describe_geometry,
    find_generated,
    load_generated,
    resolve_geometry,
)
from steelgen.evaluation.utility.folds import choose_held_back, divide_folds, list_pooled
from steelgen.evaluation.utility.weights import load_weights

_REAL_STREAM, _GENERATED_STREAM = 11, 12
"""Separate random streams under one seed."""


@dataclass(frozen=True)
class StudyData:
    """The decoded real splits and generated pairs."""

    info: DatasetInfo
    geometry: CropGeometry
    train: Micrographs
    val: Micrographs
    test: Micrographs
    generated: Micrographs | None
    """Pairs of image_size px; None without a generated folder."""
    notes: list[str]
    """What was assumed or converted."""
    weights: NDArray[np.float64] | None = None
    """(N,) frequencies of the generated pairs; None shows all alike."""
    predicted: Micrographs | None = None
    """Micrographs with predicted masks; None without."""

    @property
    def num_generated(self) -> int:
        """Number of generated pairs."""
        return 0 if self.generated is None else len(self.generated)

    def compute_hash(self) -> str:
        """Hash of all data that networks see."""
        further = [part for part in (self.generated, self.predicted) if part]
        return _hash_sets(self.train, self.val, self.test, *further, weights=self.weights)

    def describe_inputs(self) -> dict[str, str]:
        """Hash of the data behind each input field of the config."""
        hashes = {"dataset": _hash_sets(self.train, self.val, self.test)}
        if self.generated:
            hashes["generated"] = _hash_sets(self.generated, weights=self.weights)
        if self.predicted:
            hashes["predicted"] = _hash_sets(self.predicted)
        return hashes


def load_study(config: UtilityConfig) -> StudyData:
    """Reads the real splits and the generated pairs of a study without folds.

    Raises:
        InputError: if a split or the generated folder cannot be used, their classes differ, or a code needs more data
            than there is.
    """
    found, geometry, notes = _find_generated(config, config.generated, config.generated_masks)
    names = [name for name in (config.train_split, config.val_split, config.test_split) if name is not None]
    splits = [load_micrographs(config.dataset, name, geometry.in_channels) for name in names]
    if config.val_split is None:
        splits[:1] = hold_back(splits[0], config.val_share)
    return _combine(config, None, found, geometry, notes, splits)


def load_validation_study(config: UtilityConfig) -> StudyData:
    """Reads a study whose networks are tested on the validation split; the test split is not read.

    Raises:
        InputError: see `load_study`.
    """
    assert config.val_split is not None
    found, geometry, notes = _find_generated(config, config.generated, config.generated_masks)
    train, val = (
        load_micrographs(config.dataset, name, geometry.in_channels) for name in (config.train_split, config.val_split)
    )
    return _combine(config, None, found, geometry, notes, [train, val, val])


def load_studies(config: UtilityConfig) -> dict[str | None, StudyData]:
    """Reads the data of each fold by its name; that of a study without folds has the name None.

    Raises:
        InputError: see `load_study` and `divide_folds`; also if generated pairs of folds have different sizes.
    """
    if config.folds is None:
        return {None: load_study(config)}
    studies: dict[str | None, StudyData] = {}
    folds = divide_folds(config)
    for name, divided in folds.items():
        generated, masks = (insert_fold(path, name) for path in (config.generated, config.generated_masks))
        found, geometry, notes = _find_generated(config, generated, masks)
        first = next(iter(studies.values()), None)
        if first is not None and geometry != first.geometry:
            raise InputError(
                f"{generated}: {describe_geometry(geometry)}; fold {next(iter(folds))} has another geometry"
            )
        pool = _pool_splits(config, geometry.in_channels)
        splits = [pool.select(pool.stems.index(stem) for stem in stems) for stems in divided.values()]
        studies[name] = _combine(config, name, found, geometry, notes, splits)
    return studies


def insert_fold(path: Path | None, fold: str | None) -> Path | None:
    """Replaces {fold} in a path by the name of a fold, if there is one."""
    return path if path is None or fold is None else Path(str(path).replace(FOLD, fold))


def hash_studies(studies: Mapping[str | None, StudyData]) -> str:
    """Hash of all data that networks see, in all folds."""
    if None in studies:
        return studies[None].compute_hash()
    return hash_arrays(text=str({name: data.compute_hash() for name, data in studies.items()}))


def describe_inputs(studies: Mapping[str | None, StudyData]) -> dict[str, str]:
    """Hash of the data behind each input field of the config, in all folds."""
    inputs = [data.describe_inputs() for data in studies.values()]
    if None in studies:
        return inputs[0]
    return {field: hash_arrays(text=str([hashes[field] for hashes in inputs])) for field in inputs[0]}


def _find_generated(
    config: UtilityConfig, generated: Path | None, masks: Path | None
) -> tuple[GeneratedFolder | None, CropGeometry, list[str]]:
    found = find_generated(generated, masks) if generated else None
    if found and found.masks is None:
        raise InputError(f"{generated}: no masks in labels/ or masks/, which training needs")
    return found, *_resolve_geometry(config, found)


def _pool_splits(config: UtilityConfig, in_channels: int) -> Micrographs:
    parts = [load_micrographs(config.dataset, name, in_channels) for name in list_pooled(config)]
    return _join(parts)


def _join(parts: Sequence[Micrographs]) -> Micrographs:
    """Joins micrographs of the same classes."""
    return Micrographs(
        parts[0].info,
        [stem for part in parts for stem in part.stems],
        [image for part in parts for image in part.images],
        [mask for part in parts for mask in part.masks],
    )


def _combine(
    config: UtilityConfig,
    fold: str | None,
    found: GeneratedFolder | None,
    geometry: CropGeometry,
    notes: list[str],
    splits: list[Micrographs],
) -> StudyData:
    """Training, validation and test micrographs with the generated pairs and predicted masks of their fold."""
    if config.num_classes:
        splits = [replace(s, info=declare_classes(s.info, config.num_classes, config.dataset)) for s in splits]
    train, val, test = splits
    generated = weights = None
    folder, completed = insert_fold(config.generated, fold), insert_fold(config.predicted, fold)
    if found:
        assert folder is not None
        _check_classes(folder, train.info, config.dataset)
        pairs, more = load_generated(found, geometry, train.info)
        assert pairs.masks is not None
        notes += more + _compare_scales(found, geometry, min(min(mask.shape) for mask in train.masks))
        generated = Micrographs(train.info, pairs.names, list(pairs.images), list(pairs.masks))
        weights = load_weights(folder, found.images)
        notes += [] if weights is None else ["generated pairs are shown in proportion to their pair_weight"]
    predicted = _load_predicted(completed, config, splits, geometry.in_channels) if completed else None
    if predicted:
        notes.append(f"codes with L add {len(predicted)} micrographs with predicted masks to the real ones")
    data = StudyData(train.info, geometry, train, val, test, generated, notes, weights, predicted)
    for text in config.codes:
        count_data(parse_code(text), data)
    return data


def _load_predicted(
    folder: Path, config: UtilityConfig, splits: Sequence[Micrographs], in_channels: int
) -> Micrographs:
    """Reads the micrographs with predicted masks of a completed dataset folder.

    Raises:
        InputError: if there are none, or one is a micrograph of the study, or their classes differ from its.
    """
    info = splits[0].info
    _check_classes(folder, info, config.dataset)
    rows = load_metadata(folder)
    chosen = {Path(name).stem for name, row in rows.items() if row.get("labels") == PREDICTED}
    micrographs = load_micrographs(folder, config.train_split, in_channels)
    found = replace(
        micrographs.select(index for index, stem in enumerate(micrographs.stems) if stem in chosen), info=info
    )
    if not found.stems:
        raise InputError(f"{folder}: predicted: has no micrographs with predicted masks in {config.train_split}")
    if known := {stem for part in splits for stem in part.stems} & set(found.stems):
        raise InputError(f"{folder}: predicted: {min(known)} is a micrograph of {config.dataset}")
    return found


def count_data(code: DataCode, data: StudyData) -> tuple[int, int]:
    """Number of micrographs and of generated pairs that a code uses.

    Raises:
        InputError: if there are fewer.
    """
    try:
        return code.count_real(len(data.train)), code.count_generated(data.num_generated)
    except ValueError as error:
        raise InputError(f"codes: {error}") from None


def hold_back(micrographs: Micrographs, share: float) -> list[Micrographs]:
    """Splits training micrographs into those to train on and those to validate on; see `choose_held_back`."""
    return [micrographs.select(part) for part in choose_held_back(len(micrographs), share, micrographs.info.name)]


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
                micrographs = _join([micrographs, data.predicted])
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


def _hash_sets(*sets: Micrographs, weights: NDArray[np.float64] | None = None) -> str:
    arrays: list[NDArray] = [array for part in sets for array in (*part.images, *part.masks)]
    arrays += [] if weights is None else [weights]
    return hash_arrays(*arrays, text=str([part.stems for part in sets]))


def _resolve_geometry(config: UtilityConfig, found: GeneratedFolder | None) -> tuple[CropGeometry, list[str]]:
    if found:
        return resolve_geometry(found, config.geometry)
    section = config.geometry
    if section.image_size is None:
        raise InputError("geometry.image_size: is missing, and there are no generated images to take it from")
    crop_size, scale_range = section.crop_size or section.image_size, section.scale_range or (1.0, 1.0)
    return CropGeometry(section.image_size, crop_size, scale_range, section.in_channels or 1), []


def _check_classes(generated: Path, info: DatasetInfo, dataset: Path) -> None:
    if not (generated / "dataset.json").is_file():
        return
    names = load_dataset_info(generated).class_names
    if names != info.class_names:
        raise InputError(
            f"{generated}: its classes are {', '.join(names)}, those of {dataset} are {', '.join(info.class_names)}"
        )


def _compare_scales(found: GeneratedFolder, geometry: CropGeometry, smallest: int) -> list[str]:
    """A note if generated images and real crops differ in magnification; `smallest` micrograph edge bounds crops."""
    if found.sampling.crop_size is None or found.sampling.image_size is None:
        return []
    generated = min(found.sampling.crop_size, smallest) / found.sampling.image_size
    real = min(geometry.crop_size, smallest) / geometry.image_size
    if math.isclose(generated, real):
        return []
    return [f"a pixel spans {generated:g} micrograph pixels in generated images, but {real:g} in real crops"]

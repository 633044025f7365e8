"""Training, validation and test data of a utility study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.config.utility import FOLD, DataCode, UtilityConfig, parse_code
from steelgen.data.classes import declare_classes
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.labeled_folders import list_predicted
from steelgen.evaluation.sets import (
    GeneratedFolder,
    describe_geometry,
    find_generated,
    load_generated,
    resolve_geometry,
)
from steelgen.evaluation.utility.folds import choose_held_back, divide_folds, list_pooled
from steelgen.evaluation.utility.weights import load_weights


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
    return join_micrographs(parts)


def join_micrographs(parts: Sequence[Micrographs]) -> Micrographs:
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
    chosen = list_predicted(folder)
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

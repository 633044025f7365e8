"""Training, validation and test images of a classification study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.classify import ClassifierTrainingSection, ClassifyConfig
from steelgen.config.utility import DataCode
from steelgen.data.balanced_crops import variation_rng, vary_images
from steelgen.data.crops import CropDataset, Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, list_pairs, load_metadata
from steelgen.data.images import load_image, to_channels
from steelgen.data.placement import CropGeometry
from steelgen.data.splits import parent_of
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.sets import GeneratedFolder, describe_geometry, find_generated
from steelgen.evaluation.utility.training_set import choose_subset


class Sides(NamedTuple):
    """The real images of one split."""

    sound: Micrographs
    defective: Micrographs

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(N,) whether each image is defective, sound ones first."""
        return np.repeat([False, True], [len(self.sound), len(self.defective)])

    @property
    def names(self) -> list[str]:
        """(N,) side and stem of each image."""
        return [f"{side}/{stem}" for side, part in zip(self._fields, self, strict=True) for stem in part.stems]


@dataclass(frozen=True)
class ClassifierData:
    """The decoded real images of both sides and the generated defective ones, all of one size."""

    geometry: CropGeometry
    train: Sides
    val: Sides
    test: Sides
    test_parents: list[str]
    """(N,) the micrograph that each test image was cut from, in the order of `test.names`."""
    generated: Micrographs | None
    warnings: list[str]

    @property
    def num_generated(self) -> int:
        """Number of generated images."""
        return 0 if self.generated is None else len(self.generated)

    def count(self, code: DataCode) -> tuple[int, int]:
        """Number of real defective and of generated images that a code uses."""
        return code.count_real(len(self.train.defective)), code.count_generated(self.num_generated)

    def compute_hash(self) -> str:
        """Hash of all data that networks see."""
        return hash_arrays(text=str(self.describe_inputs()))

    def describe_inputs(self) -> dict[str, str]:
        """Hash of the data behind each input field of the config."""
        sides = zip(self.train, self.val, self.test, strict=True)
        hashes = {side: _hash_images(*parts) for side, parts in zip(Sides._fields, sides, strict=True)}
        return {**hashes, "generated": _hash_images(self.generated)} if self.generated else hashes


def load_images(config: ClassifyConfig) -> ClassifierData:
    """Reads the real images of both sides and the generated images of a study.

    Raises:
        InputError: if a side lacks a split or images, images are not square or differ in size or channels, or there are
            fewer defective images than a code needs.
    """
    roots, in_channels = (config.sound, config.defective), _find_channels(config)
    names = [config.train_split, config.val_split, config.test_split]
    train, val, test = (Sides(*(load_micrographs(root, name, in_channels) for root in roots)) for name in names)
    size = train.sound.images[0].shape[0]
    for name, sides in zip(names, (train, val, test), strict=True):
        for root, part in zip(roots, sides, strict=True):
            _check_size(f"{root}/{name}", part, size)
    geometry = CropGeometry(size, size, (1.0, 1.0), in_channels)
    found = find_generated(config.generated) if config.generated else None
    generated = _load_generated(found, config, geometry, train.defective.info) if found else None
    for count in config.num_defective:
        if count != "ALL" and count > len(train.defective):
            raise InputError(
                f"num_defective: {count}, but {config.defective} has {len(train.defective)} images in "
                f"{config.train_split!r}"
            )
    trained, tested = _list_parents(config, config.train_split, train), _list_parents(config, config.test_split, test)
    warnings = []
    if shared := sorted(set(trained) & set(tested)):
        warnings.append(
            f"micrographs in both {config.train_split} and {config.test_split}: {', '.join(shared[:3])}"
            f"{' …' if len(shared) > 3 else ''}; nothing of them is held out, see `steelgen data split`"
        )
    if found and found.sampling.source_split == config.test_split:
        warnings.append(f"the generated images were sampled for masks of the test split {config.test_split!r}")
    return ClassifierData(geometry, train, val, test, tested, generated, warnings)


def _find_channels(config: ClassifyConfig) -> int:
    """3 if a real training image is in color, else 1."""
    pairs = [pair for root in (config.sound, config.defective) for pair in list_pairs(root, config.train_split)]
    return 3 if any(load_image(pair.image).ndim == 3 for pair in pairs) else 1


def _list_parents(config: ClassifyConfig, split: str, sides: Sides) -> list[str]:
    """The micrograph of each image of a split, sound ones first, by metadata.jsonl or by the names of tiles."""
    parents = []
    for root, part in zip((config.sound, config.defective), sides, strict=True):
        rows = {Path(name).stem: row for name, row in load_metadata(root).items() if name.startswith(f"{split}/")}
        parents += [str(rows.get(stem, {}).get("parent") or parent_of(stem)) for stem in part.stems]
    return parents


def _check_size(where: str, images: Micrographs, size: int) -> None:
    for stem, image in zip(images.stems, images.images, strict=True):
        if image.shape[:2] != (size, size):
            height, width = image.shape[:2]
            raise InputError(
                f"{where}: {stem} is {width}x{height} px; all images must be square and of one size, here {size} px "
                "(`steelgen data tile` cuts such)"
            )


def _load_generated(
    found: GeneratedFolder, config: ClassifyConfig, geometry: CropGeometry, info: DatasetInfo
) -> Micrographs:
    """Reads generated images, without masks, which classification does not use."""
    images = [load_image(path) for path in found.images]
    size, expected = geometry.image_size, describe_geometry(geometry).split(", from")[0]
    color = any(image.ndim == 3 for image in images)
    if color != (geometry.in_channels == 3):
        raise InputError(f"{config.generated}: images are {'RGB' if color else 'gray'}; the real images are {expected}")
    for path, image in zip(found.images, images, strict=True):
        height, width = image.shape[:2]
        if (height, width) != (size, size):
            raise InputError(f"{path}: is {width}x{height} px; the real images are {expected}")
    blank = np.zeros((size, size), np.uint8)
    names = [path.stem for path in found.images]
    return Micrographs(
        info, names, [to_channels(image, geometry.in_channels) for image in images], [blank] * len(names)
    )


def _hash_images(*parts: Micrographs) -> str:
    return hash_arrays(*(image for part in parts for image in part.images), text=str([part.stems for part in parts]))


class ClassifierBatches:
    """Infinite sequence of training images of one code and seed; image n is a pure function of both.

    Even images are sound, odd ones defective. Sound image k and real defective image k do not depend on the generated
    images: a code with these sees the same real images in the same order, the defective ones only later.
    """

    def __init__(self, data: ClassifierData, code: DataCode, seed: int, settings: ClassifierTrainingSection) -> None:
        num_real, num_generated = data.count(code)
        self.settings, self.seed = settings, seed
        chosen = choose_subset(len(data.train.defective), num_real, seed)
        self.sound = CropDataset(data.train.sound, data.geometry, seed, settings.augment)
        self.real = CropDataset(data.train.defective.select(chosen), data.geometry, seed, settings.augment)
        self.generated: CropDataset | None = None
        self.real_share = 1.0
        if num_generated:
            assert data.generated is not None
            self.generated = CropDataset(data.generated, data.geometry, seed, settings.augment)
            self.real_share = settings.real_share or num_real / (num_real + num_generated)

    def pick(self, number: int) -> tuple[CropDataset, int]:
        """Set of image `number`, and its number there."""
        number, defective = divmod(number, 2)
        if not defective:
            return self.sound, number
        # Evenly mixed: ⌊k · share⌋ of the first k defective images are real.
        before, after = math.floor(number * self.real_share), math.floor((number + 1) * self.real_share)
        if after > before:
            return self.real, before
        assert self.generated is not None
        return self.generated, number - before

    def sample_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch of step `step`, from 0.

        Returns:
            images: (N, C, S, S) in [-1, 1]; labels: (N,) float, 1 for defective.
        """
        first = step * self.settings.batch_size
        picked = [self.pick(number) for number in range(first, first + self.settings.batch_size)]
        images = torch.stack([crops[number]["image"] for crops, number in picked])
        levels = self.settings.variation.model_dump()
        images = vary_images(images, variation_rng(self.seed, step), **levels)
        labels = torch.tensor([float(crops is not self.sound) for crops, _ in picked])
        return images.to(memory_format=torch.channels_last), labels

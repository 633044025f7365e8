"""Instances of micrographs: islands of the masks or annotated objects, whole and in test tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.config.instance import InstanceConfig
from steelgen.config.utility import parse_code
from steelgen.data.crops import Micrographs
from steelgen.data.islands import label_islands
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.utility.data import StudyData, load_study


class Instances(NamedTuple):
    """The instances in a mask."""

    ids: NDArray[np.int32]
    """(H, W): number of the instance, from 1, at each pixel; 0 for none."""
    labels: NDArray[np.int64]
    """(K,) class index of each."""

    @property
    def areas(self) -> NDArray[np.int64]:
        """(K,) px."""
        return np.bincount(self.ids.ravel(), minlength=len(self.labels) + 1)[1:]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(K, H, W)."""
        return self.ids == np.arange(1, len(self.labels) + 1)[:, None, None]


class Tile(NamedTuple):
    """A part of a micrograph in which instances are predicted and scored."""

    micrograph: int
    """Index in its split."""
    stem: str
    """Stem of the micrograph."""
    top: int
    left: int
    image: NDArray[np.uint8]
    """(h, w) or (h, w, 3), at the resolution of the micrograph."""
    truth: Instances
    counted: NDArray[np.bool_]
    """(h, w): pixels that are not ignored."""


@dataclass(frozen=True)
class InstanceData(StudyData):
    """The data of a study of segmentation, with what counts as an instance."""

    background: int = 0
    """Class index."""
    min_area: int = 1
    """Micrograph px."""
    val_tiles: Sequence[Tile] = ()
    test_tiles: Sequence[Tile] = ()
    small_area: float = 0.0
    """Median area of the instances of the training micrographs, px: the largest area of a small instance."""

    @property
    def things(self) -> list[int]:
        """Indices of the classes that have instances."""
        return [index for index in range(self.info.num_classes) if index != self.background]

    def compute_hash(self) -> str:
        """Hash of all data that networks see, instance maps included."""
        return hash_arrays(text=str(self.describe_inputs()))

    def describe_inputs(self) -> dict[str, str]:
        """Hash of the data behind each input field of the config."""
        maps = [ids for part in (self.train, self.val, self.test) for ids in part.instances or ()]
        hashes = super().describe_inputs()
        return {**hashes, "dataset": hash_arrays(*maps, text=hashes["dataset"])} if maps else hashes


def load_instances(config: InstanceConfig) -> InstanceData:
    """Reads the micrographs and generated pairs of a study, and finds the instances of the tiles.

    Raises:
        InputError: see `load_study`; also if the background is no class, a split has no instances, or instance maps
            meet copy-paste, predicted masks or CutMix, which cannot carry them.
    """
    data = load_study(config)
    names = "train", "val", "test"
    if not config.instance.maps or any(getattr(data, name).instances is None for name in names):
        data = replace(data, **{name: replace(getattr(data, name), instances=None) for name in names})
    if data.train.instances is not None:
        _refuse_mixing(config)
    background, min_area = _find_background(config, data.train), config.instance.min_area
    areas = np.concatenate(
        [find_instances(*pair, background, data.info.num_classes, min_area).areas for pair in _pair(data.train)]
    )
    tiles = [list(cut_tiles(part, data.geometry.crop_size, background, min_area)) for part in (data.val, data.test)]
    counts = [len(areas), *(sum(len(tile.truth.labels) for tile in part) for part in tiles)]
    for name, count in zip(("training", "validation", "test"), counts, strict=True):
        if not count:
            raise InputError(
                f"{config.dataset}: no instances of at least {min_area} px in the {name} micrographs; check "
                f"instance.background (here {data.info.class_names[background]!r}) and instance.min_area"
            )
    notes = [*data.notes, *_describe_instances(config, data, background)]
    return InstanceData(
        **{**{field.name: getattr(data, field.name) for field in fields(StudyData)}, "notes": notes},
        background=background,
        min_area=min_area,
        val_tiles=tiles[0],
        test_tiles=tiles[1],
        small_area=float(np.median(areas)),
    )


def _describe_instances(config: InstanceConfig, data: StudyData, background: int) -> list[str]:
    kind = "islands" if data.train.instances is None else "objects of the instance maps"
    lines = [
        f"instances are {kind} of at least {config.instance.min_area} px of all classes but "
        f"{data.info.class_names[background]}"
    ]
    if data.train.instances is not None and data.generated is not None:
        lines.append("instances of generated pairs are islands of their masks, in which touching instances are one")
    return lines


def _refuse_mixing(config: InstanceConfig) -> None:
    rivals = [(text, found) for text in config.codes if (found := parse_code(text).rivals)]
    augmentation = config.training.augmentation
    if rivals or (augmentation and augmentation.cutmix_share):
        what = f"codes: {': '.join(rivals[0])}" if rivals else "training.augmentation.cutmix_share: CutMix"
        raise InputError(f"{what} cannot carry the instance maps of {config.dataset}; set instance.maps to false")


def _find_background(config: InstanceConfig, train: Micrographs) -> int:
    names, chosen = train.info.class_names, config.instance.background
    if chosen is None:
        counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in train.masks)
        return int(np.argmax(np.asarray(counts)[: train.info.num_classes]))
    if chosen not in names:
        raise InputError(f"instance.background: {chosen!r} is no class of {config.dataset} (has: {', '.join(names)})")
    return names.index(chosen)


def _pair(micrographs: Micrographs) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16] | None]]:
    """Mask and instance map of each micrograph."""
    maps = micrographs.instances
    for index, mask in enumerate(micrographs.masks):
        yield mask, None if maps is None else maps[index]


def find_instances(
    mask: NDArray[np.uint8],
    objects: NDArray[np.integer] | None,
    background: int,
    num_classes: int,
    min_area: float,
) -> Instances:
    """Finds the instances in a mask.

    Args:
        mask: (H, W) class indices; other values than classes are ignored.
        objects: (H, W) ids of annotated objects, whose class is the most common one of their pixels outside the
            background; None takes the islands of each class.
        background: class index without instances.
        num_classes: number of classes.
        min_area: area of the smallest instance, px.
    """
    thing = (mask != background) & (mask < num_classes)
    found = np.zeros(mask.shape, np.int64)
    if objects is None:
        for label in np.unique(mask[thing]):
            islands, _ = label_islands(mask == label)
            found = np.where(islands > 0, islands + found.max(), found)
    else:
        found = np.where(thing, objects, 0).astype(np.int64)
    numbers, ids, areas = np.unique(found, return_inverse=True, return_counts=True)
    kept = (numbers > 0) & (areas >= min_area)
    places = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[ids.reshape(mask.shape)]
    votes = np.zeros((int(kept.sum()) + 1, num_classes), np.int64)
    np.add.at(votes, (places[thing], mask[thing]), 1)
    return Instances(places, votes[1:].argmax(axis=1))


def cut_tiles(micrographs: Micrographs, crop_size: int, background: int, min_area: int) -> Iterator[Tile]:
    """Cuts whole micrographs into tiles side by side; a rest at the right and below is left out.

    Instances are found in the tile, so that one that its edge cuts counts with its part inside.

    Args:
        micrographs: the split.
        crop_size: edge of the tiles, px; of micrographs that are smaller, their shortest edge.
        background, min_area: see `find_instances`.
    """
    info = micrographs.info
    for index, (mask, objects) in enumerate(_pair(micrographs)):
        edge = min(crop_size, *mask.shape)
        for top in range(0, mask.shape[0] - edge + 1, edge):
            for left in range(0, mask.shape[1] - edge + 1, edge):
                window = slice(top, top + edge), slice(left, left + edge)
                part, ids = mask[window], None if objects is None else objects[window]
                truth = find_instances(part, ids, background, info.num_classes, min_area)
                image, stem = micrographs.images[index][window], micrographs.stems[index]
                yield Tile(index, stem, top, left, image, truth, part != info.ignore_index)

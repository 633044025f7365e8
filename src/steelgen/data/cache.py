"""Decoded splits, cached on disk and memory-mapped, so training neither decodes images nor copies them per process.

    CACHE/KEY/images.raw  masks.raw  instances.raw   pixels of the split, one micrograph after the other
    CACHE/KEY/index.json                             stems and sizes

The key is a digest of the names and contents of all files, so a changed dataset never reads a stale cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.conditions import Condition
from steelgen.data.folder import DatasetInfo, Pair, list_pairs, load_dataset_info, load_instances, load_pair
from steelgen.data.images import to_channels
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import Record, default_cache_dir, load_record, new_folder, save_json


@dataclass(frozen=True)
class Share:
    """One dataset of a mixture."""

    name: str
    weight: float
    """Share of the crops, relative to the other weights."""
    crop_size: int
    scale_range: tuple[float, float]
    """See `CropGeometry`."""
    digest: str
    """See `Micrographs`."""


@dataclass(frozen=True)
class Micrographs:
    """One decoded split of a dataset folder, or of several (see `mixture`); arrays from the cache are memory-mapped,
    read-only and shared by forks."""

    info: DatasetInfo
    stems: list[str]
    images: list[NDArray[np.uint8]]
    """(H, W) or (H, W, 3) each."""
    masks: list[NDArray[np.uint8]]
    """(H, W) class indices each."""
    instances: list[NDArray[np.uint16]] | None = None
    """(H, W) instance ids each; None unless all micrographs have them."""
    digest: str = ""
    """Hex digest of all files of the split; empty for other sets of micrographs."""
    shares: tuple[Share, ...] = ()
    """The datasets of a mixture; empty for one dataset."""
    members: tuple[int, ...] = ()
    """Index of each micrograph's dataset in `shares`; empty for one dataset."""
    source: Micrographs | None = None
    """Images to turn into images like these, without a pair among them; see `data.source` of a training config."""
    conditions: NDArray[np.float32] | None = None
    """(N, K) encoded conditions, NaN where unknown; None without conditions."""
    columns: tuple[Condition, ...] = ()
    """The conditions."""

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def inputs(self) -> Micrographs:
        """The micrographs with the masks and images that a generator is given: those of the source, if any."""
        return self.source or self

    def select(self, indices: Iterable[int]) -> Micrographs:
        """Returns the micrographs with these indices, in this order."""
        chosen = list(indices)
        return replace(
            self,
            stems=[self.stems[index] for index in chosen],
            images=[self.images[index] for index in chosen],
            masks=[self.masks[index] for index in chosen],
            instances=None if self.instances is None else [self.instances[index] for index in chosen],
            digest="",
            members=tuple(self.members[index] for index in chosen) if self.members else (),
            conditions=None if self.conditions is None else self.conditions[chosen],
        )

    def without_masks(self) -> Micrographs:
        """Returns the images without classes, with all mask pixels ignored."""
        info = self.info.model_copy(update={"class_names": [], "palette": []})
        blank = [np.full(mask.shape, info.ignore_index, np.uint8) for mask in self.masks]
        return replace(self, info=info, masks=blank, instances=None)

    def fit_geometry(self, index: int, geometry: CropGeometry) -> CropGeometry:
        """Returns the geometry of crops of a micrograph: in a mixture, crop_size and scale_range of its dataset."""
        if not self.shares:
            return geometry
        share = self.shares[self.members[index]]
        return replace(geometry, crop_size=share.crop_size, scale_range=share.scale_range)

    def weigh(self, members: Sequence[int]) -> NDArray[np.float64]:
        """Computes the chance of each item, (N,) with sum 1: an equal part of its dataset's share of the crops.

        Args:
            members: index of each item's dataset in `shares`.
        """
        counts = np.bincount(members, minlength=len(self.shares))
        weights = np.array([share.weight for share in self.shares]) / np.maximum(counts, 1)
        chances = weights[np.asarray(members)]
        return chances / chances.sum()

    def compute_intensity(self) -> tuple[float, float]:
        """Computes mean and standard deviation of all pixels, in the range [-1, 1] of the network's images; the
        datasets of a mixture count by their share of the crops."""
        counts = np.array([np.bincount(image.ravel(), minlength=256) for image in self.images])
        if self.shares:
            chances = self.weigh(self.members)
            counts = counts / counts.sum(axis=1, keepdims=True) * chances[:, None]
        totals = counts.sum(axis=0)
        levels = np.arange(256) / 127.5 - 1
        mean = float(np.average(levels, weights=totals))
        return mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=totals)))


def open_cached_split(root: Path, split: str, in_channels: int = 1, cache_root: Path | None = None) -> Micrographs:
    """Memory-maps one split, decoding it first if it is not in the cache.

    Args:
        root: dataset folder.
        split: train, val or test.
        in_channels: 1 converts RGB micrographs to gray, 3 repeats gray ones.
        cache_root: cache folder; None means `default_cache_dir()`.

    Raises:
        InputError: if the split is missing, empty or contains an invalid pair.
    """
    info, pairs = load_dataset_info(root), list_pairs(root, split)
    digest = _compute_key(root, pairs, in_channels)
    folder = (cache_root or default_cache_dir()) / digest
    if not (folder / "index.json").is_file():
        _build(folder, info, pairs, in_channels)
    index = load_record(folder / "index.json", _Index)
    shapes = index.shapes
    return Micrographs(
        info,
        index.stems,
        _map(folder / "images.raw", [(*shape, 3) if in_channels == 3 else shape for shape in shapes]),
        _map(folder / "masks.raw", shapes),
        _map(folder / "instances.raw", shapes) if index.has_instances else None,
        digest,
    )


def decode_split(root: Path, split: str, in_channels: int = 1) -> Micrographs:
    """Decodes one split into memory, without a cache; see `open_cached_split`."""
    info, pairs = load_dataset_info(root), list_pairs(root, split)
    images, masks, instances = map(list, zip(*_decode(info, pairs, in_channels), strict=True))
    return Micrographs(
        info,
        [pair.stem for pair in pairs],
        images,
        masks,
        instances if _have_instances(pairs) else None,
        _compute_key(root, pairs, in_channels),
    )


class _Index(Record):
    """Content of index.json."""

    stems: list[str]
    shapes: list[tuple[int, ...]]
    has_instances: bool


def _compute_key(root: Path, pairs: list[Pair], in_channels: int) -> str:
    digest = hashlib.blake2b(f"1 {in_channels}".encode(), digest_size=16)
    for path in [root / "dataset.json", *(path for pair in pairs for path in (pair.image, pair.mask, pair.instances))]:
        if path:
            content = path.read_bytes() if path.is_file() else b""
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _build(folder: Path, info: DatasetInfo, pairs: list[Pair], in_channels: int) -> None:
    try:
        with new_folder(folder) as working:
            shapes = []
            with (
                open(working / "images.raw", "wb") as images,
                open(working / "masks.raw", "wb") as masks,
                open(working / "instances.raw", "wb") as instances,
            ):
                for image, mask, ids in _decode(info, pairs, in_channels):
                    shapes.append(mask.shape)
                    images.write(image.tobytes())
                    masks.write(mask.tobytes())
                    instances.write(ids.tobytes() if ids is not None else b"")
            stems = [pair.stem for pair in pairs]
            content = {"stems": stems, "shapes": shapes, "has_instances": _have_instances(pairs)}
            save_json(working / "index.json", content)
    except (InputError, OSError):
        # Another process may have built the same cache in the meantime.
        if not (folder / "index.json").is_file():
            raise


def _decode(
    info: DatasetInfo, pairs: list[Pair], in_channels: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16] | None]]:
    """Yields image, mask and, if all pairs have them, instance ids."""
    has_instances = _have_instances(pairs)
    for pair in pairs:
        image, mask = load_pair(pair, info)
        yield to_channels(image, in_channels), mask, load_instances(pair, mask.shape) if has_instances else None


def _map(path: Path, shapes: list[tuple[int, ...]]) -> list[NDArray]:
    dtype = np.dtype(np.uint16 if path.stem == "instances" else np.uint8)
    flat = np.memmap(path, dtype, mode="r")
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    if flat.size != ends[-1]:
        raise InputError(f"{path}: contains {flat.size} pixels, expected {ends[-1]}; remove {path.parent}")
    return [flat[end - int(np.prod(shape)) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def _have_instances(pairs: list[Pair]) -> bool:
    return all(pair.instances is not None and pair.instances.is_file() for pair in pairs)

"""One split of a dataset folder, decoded once and then mapped from disk: no decoding in training, no copy a process.

    CACHE/KEY/images.raw  masks.raw  instances.raw   all pixels of the split, one micrograph after the other
    CACHE/KEY/index.json                             stems and sizes

The key is a digest of every file's name and content, so a changed dataset is never read from a stale cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo, Pair, list_pairs, load_dataset_info, load_pair
from steelgen.data.images import to_channels
from steelgen.data.instances import load_instance_ids
from steelgen.errors import InputError
from steelgen.files import Record, default_cache_dir, load_record, new_folder, save_json


@dataclass(frozen=True)
class Micrographs:
    """One split of a dataset folder, decoded; from the cache its arrays are mapped, read-only and shared by forks."""

    info: DatasetInfo
    stems: list[str]
    images: list[NDArray[np.uint8]]
    """(H, W) or (H, W, 3) each."""
    masks: list[NDArray[np.uint8]]
    """(H, W) class indices each."""
    instances: list[NDArray[np.uint16]] | None = None
    """(H, W) instance ids each, where every micrograph has them."""
    digest: str = ""
    """Of all files of the split, in hex; empty for other sets of micrographs."""

    def __len__(self) -> int:
        return len(self.stems)

    def select(self, indices: Iterable[int]) -> Micrographs:
        """The micrographs of those indices, in their order."""
        chosen = list(indices)
        return Micrographs(
            self.info,
            [self.stems[index] for index in chosen],
            [self.images[index] for index in chosen],
            [self.masks[index] for index in chosen],
            None if self.instances is None else [self.instances[index] for index in chosen],
        )

    def without_masks(self) -> Micrographs:
        """The images alone, of no classes."""
        info = self.info.model_copy(update={"class_names": [], "palette": []})
        blank = [np.full(mask.shape, info.ignore_index, np.uint8) for mask in self.masks]
        return Micrographs(info, self.stems, self.images, blank, digest=self.digest)

    def compute_intensity(self) -> tuple[float, float]:
        """Mean and standard deviation of all pixels, in the units of the network's images ([-1, 1])."""
        counts = np.sum([np.bincount(image.ravel(), minlength=256) for image in self.images], axis=0)
        levels = np.arange(256) / 127.5 - 1
        mean = float(np.average(levels, weights=counts))
        return mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))


def open_cached_split(root: Path, split: str, in_channels: int = 1, cache_root: Path | None = None) -> Micrographs:
    """Maps one split, decoding it first where that has not been done yet.

    Args:
        root: a dataset folder.
        split: train, val or test.
        in_channels: 1 turns RGB micrographs gray, 3 repeats gray ones.
        cache_root: where caches are kept; None is `default_cache_dir()`.

    Raises:
        InputError: if the split is missing, empty or holds a pair that cannot be used.
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
    """The same as `open_cached_split`, decoded into memory and without a cache."""
    info, pairs = load_dataset_info(root), list_pairs(root, split)
    decoded = [load_pair(pair, info) for pair in pairs]
    has_instances = _have_instances(pairs)
    return Micrographs(
        info,
        [pair.stem for pair in pairs],
        [to_channels(image, in_channels) for image, _ in decoded],
        [mask for _, mask in decoded],
        [_load_instances(pair, mask.shape) for pair, (_, mask) in zip(pairs, decoded, strict=True)]
        if has_instances
        else None,
        _compute_key(root, pairs, in_channels),
    )


class _Index(Record):
    """index.json of a cache."""

    stems: list[str]
    shapes: list[tuple[int, ...]]
    has_instances: bool


def _compute_key(root: Path, pairs: list[Pair], in_channels: int) -> str:
    digest = hashlib.blake2b(f"1 {in_channels}".encode(), digest_size=16)
    for path in [root / "dataset.json", *(path for pair in pairs for path in _files(pair))]:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _build(folder: Path, info: DatasetInfo, pairs: list[Pair], in_channels: int) -> None:
    has_instances = _have_instances(pairs)
    try:
        with new_folder(folder) as working:
            shapes = []
            with (
                open(working / "images.raw", "wb") as images,
                open(working / "masks.raw", "wb") as masks,
                open(working / "instances.raw", "wb") as instances,
            ):
                for pair in pairs:
                    image, mask = load_pair(pair, info)
                    shapes.append(mask.shape)
                    images.write(to_channels(image, in_channels).tobytes())
                    masks.write(mask.tobytes())
                    if has_instances:
                        instances.write(_load_instances(pair, mask.shape).tobytes())
            content = {"stems": [pair.stem for pair in pairs], "shapes": shapes, "has_instances": has_instances}
            save_json(working / "index.json", content)
    except (InputError, OSError):
        # Another process may have built the same cache in the meantime, which is as good.
        if not (folder / "index.json").is_file():
            raise


def _load_instances(pair: Pair, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    path = _files(pair)[-1]
    instances = load_instance_ids(path)
    if instances.shape != shape:
        raise InputError(f"{path}: is {instances.shape[1]}x{instances.shape[0]}, not its mask's size")
    return instances


def _map(path: Path, shapes: list[tuple[int, ...]]) -> list[NDArray]:
    dtype = np.dtype(np.uint16 if path.stem == "instances" else np.uint8)
    flat = np.memmap(path, dtype, mode="r")
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    if flat.size != ends[-1]:
        raise InputError(f"{path}: holds {flat.size} pixels, not {ends[-1]}; remove {path.parent}")
    return [flat[end - int(np.prod(shape)) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def _have_instances(pairs: list[Pair]) -> bool:
    return all(pair.mask is not None and _files(pair)[-1].is_file() for pair in pairs)


def _files(pair: Pair) -> list[Path]:
    """Image, mask and instances, where there can be any."""
    if pair.mask is None:
        return [pair.image]
    return [pair.image, pair.mask, pair.mask.parent.parent / "instances" / f"{pair.stem}.png"]

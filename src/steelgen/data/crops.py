"""Micrographs → training crops, reproducibly: crop number n is a pure function of (seed, n).

Nothing here keeps state, so the order and the crops are the same whatever the number of workers or processes, and
training resumes in mid-epoch by counting on from the crops already used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Sampler

from steelgen.data.folder import DatasetInfo, list_pairs, load_dataset_info, load_pair
from steelgen.errors import InputError


@dataclass(frozen=True)
class CropGeometry:
    """How a micrograph becomes network input: a square of `crop_size` source pixels, resized to `image_size`."""

    image_size: int
    """Edge of the network's images, in pixels."""
    crop_size: int
    """Edge of the square cut from the micrograph, in pixels of the micrograph."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Each crop's edge is crop_size times a factor drawn log-uniformly from this range."""
    in_channels: int = 1
    """1 for grey micrographs, 3 for RGB."""


@dataclass(frozen=True)
class Micrographs:
    """One split of a dataset folder, decoded into memory."""

    info: DatasetInfo
    stems: list[str]
    images: list[NDArray[np.uint8]]
    """(H, W) or (H, W, 3) each."""
    masks: list[NDArray[np.uint8]]
    """(H, W) class indices each."""

    def __len__(self) -> int:
        return len(self.stems)

    def compute_intensity(self) -> tuple[float, float]:
        """Mean and standard deviation of all pixels, in the units of the network's images ([-1, 1])."""
        counts = np.sum([np.bincount(image.ravel(), minlength=256) for image in self.images], axis=0)
        levels = np.arange(256) / 127.5 - 1
        mean = float(np.average(levels, weights=counts))
        return mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))


def load_micrographs(root: Path, split: str, in_channels: int = 1) -> Micrographs:
    """Reads every pair of a split.

    Args:
        root: a dataset folder.
        split: train, val or test.
        in_channels: 1 turns RGB micrographs grey (ITU-R 601 luma); 3 repeats grey ones.

    Raises:
        InputError: if the split is missing, empty or holds a pair that cannot be used.
    """
    info = load_dataset_info(root)
    pairs = list_pairs(root, split)
    images, masks = [], []
    for pair in pairs:
        image, mask = load_pair(pair, info)
        images.append(to_channels(image, in_channels))
        masks.append(mask)
    return Micrographs(info, [pair.stem for pair in pairs], images, masks)


def to_channels(image: NDArray[np.uint8], in_channels: int) -> NDArray[np.uint8]:
    """Makes a (H, W) or (H, W, 3) uint8 image have 1 (H, W) or 3 (H, W, 3) channels."""
    if in_channels == 1:
        return np.asarray(Image.fromarray(image).convert("L")) if image.ndim == 3 else image
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes an image to (height, width): area average when shrinking, bicubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    method = Image.Resampling.BOX if image.shape[0] > height else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes a mask to (height, width); each pixel takes the class that covers most of its area.

    Nearest-neighbour would drop thin films at random; here one that covers half a pixel stays.
    """
    if mask.shape == (height, width):
        return mask
    if mask.shape[0] < height:
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    present = np.unique(mask)
    shares = [
        np.asarray(Image.fromarray((mask == index).astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for index in present
    ]
    return present[np.argmax(shares, axis=0)]


def cut_crop(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    geometry: CropGeometry,
    rng: np.random.Generator,
    augment: bool | str,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cuts one random crop, turned and flipped as `draw_symmetry` says.

    Returns:
        image: (image_size, image_size) or (image_size, image_size, 3) uint8; mask: (image_size, image_size) uint8.
    """
    low, high = np.log(geometry.scale_range)
    # A micrograph smaller than the crop is used whole, as its largest square.
    edge = min(round(geometry.crop_size * float(np.exp(rng.uniform(low, high)))), *mask.shape)
    top = int(rng.integers(mask.shape[0] - edge + 1))
    left = int(rng.integers(mask.shape[1] - edge + 1))
    window = (slice(top, top + edge), slice(left, left + edge))
    size = geometry.image_size
    image = resize_image(np.ascontiguousarray(image[window]), size, size)
    mask = resize_mask(np.ascontiguousarray(mask[window]), size, size)
    symmetry = draw_symmetry(augment, rng)
    return apply_symmetry(image, symmetry), apply_symmetry(mask, symmetry)


def scale_whole(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    geometry: CropGeometry,
    rng: np.random.Generator,
    augment: bool | str,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Resizes a whole micrograph by the factor of its crops, image_size / crop_size; else like `cut_crop`."""
    factor = geometry.image_size / geometry.crop_size
    height, width = (max(geometry.image_size, round(edge * factor)) for edge in mask.shape)
    image, mask = resize_image(image, height, width), resize_mask(mask, height, width)
    symmetry = draw_symmetry(augment, rng)
    return apply_symmetry(image, symmetry), apply_symmetry(mask, symmetry)


def draw_symmetry(augment: bool | str, rng: np.random.Generator) -> int:
    """An element of the square's symmetry group: any where `augment` is True; a flip every other time for "mirror"."""
    if augment == "mirror":
        return 4 * int(rng.integers(2))
    return int(rng.integers(8)) if augment else 0


def apply_symmetry(array: NDArray[np.uint8], symmetry: int) -> NDArray[np.uint8]:
    """Applies element 0-7 of the square's symmetry group: `symmetry % 4` quarter turns, then a flip for 4-7."""
    array = np.rot90(array, symmetry % 4)
    return np.ascontiguousarray(np.flip(array, axis=1) if symmetry >= 4 else array)


class CropDataset(Dataset):
    """Crop number n of an endless sequence; an epoch visits every micrograph `crops_per_micrograph` times.

    Items are dictionaries: `image` (in_channels, S, S) float32 in [-1, 1], `mask` (S, S) int64 class indices and
    `number` int64.
    """

    def __init__(self, micrographs: Micrographs, geometry: CropGeometry, seed: int, augment: bool | str) -> None:
        smallest = min(min(mask.shape) for mask in micrographs.masks)
        if smallest < geometry.image_size:
            raise InputError(
                f"{micrographs.info.name}: the smallest micrograph has an edge of {smallest} px, "
                f"less than image_size {geometry.image_size}"
            )
        self.micrographs = micrographs
        self.geometry = geometry
        self.seed = seed
        self.augment = augment
        area = float(np.mean([mask.size for mask in micrographs.masks]))
        self.crops_per_micrograph = max(1, round(area / geometry.crop_size**2))

    def __len__(self) -> int:
        """Crops in an epoch."""
        return len(self.micrographs) * self.crops_per_micrograph

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        image, mask = self.cut(number)
        return {
            "image": image_to_tensor(image),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "number": torch.tensor(number),
        }

    def cut(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Crop number `number` (any integer ≥ 0) as uint8 image and mask."""
        index = self.micrograph_index(number)
        rng = np.random.default_rng((self.seed, number))
        return cut_crop(self.micrographs.images[index], self.micrographs.masks[index], self.geometry, rng, self.augment)

    def micrograph_index(self, number: int) -> int:
        """Which micrograph crop number `number` is cut from: a fresh permutation every pass over the micrographs."""
        pass_number, position = divmod(number, len(self.micrographs))
        return int(_permutation(self.seed, pass_number, len(self.micrographs))[position])


@lru_cache(maxsize=4)
def _permutation(seed: int, pass_number: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, pass_number, 1)).permutation(length)


class CropSampler(Sampler):
    """Batches of consecutive crop numbers for one process, endlessly, starting after `start` batches.

    Micro-batch k of all processes together covers crops k·B·W to (k+1)·B·W, process r taking the r-th B of them:
    the union of the processes' batches is what one process with the whole batch would see.
    """

    def __init__(self, batch_size: int, process_index: int = 0, num_processes: int = 1, start: int = 0) -> None:
        self.batch_size = batch_size
        self.process_index = process_index
        self.num_processes = num_processes
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        micro_batch = self.start
        while True:
            first = (micro_batch * self.num_processes + self.process_index) * self.batch_size
            yield list(range(first, first + self.batch_size))
            micro_batch += 1


def image_to_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (H, W) or (H, W, 3) → float32 (C, H, W) in [-1, 1]."""
    array = image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1)


def tensor_to_image(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """float (C, H, W) in [-1, 1] → uint8 (H, W) for one channel, (H, W, 3) for three; values outside are clipped."""
    array = ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))


def cut_crops(
    micrographs: Micrographs, geometry: CropGeometry, count: int, seed: int = 0, augment: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cuts `count` random crops, evenly over the micrographs, as arrays for evaluation.

    Returns:
        images: (count, S, S) or (count, S, S, 3) uint8; masks: (count, S, S) uint8.
    """
    dataset = CropDataset(micrographs, geometry, seed, augment)
    images, masks = zip(*(dataset.cut(number) for number in range(count)), strict=True)
    return np.stack(images), np.stack(masks)

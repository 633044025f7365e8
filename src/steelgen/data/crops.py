"""Micrographs → training crops, reproducibly: crop number n is a pure function of (seed, n).

Nothing here keeps state, so the order and the crops are the same whatever the number of workers or processes, and
training resumes in mid-epoch by counting on from the crops already used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from steelgen.data.cache import Micrographs, decode_split, open_cached_split
from steelgen.data.instances import compute_instance_edges
from steelgen.data.patches import PatchCenters, check_patch_size, select_island
from steelgen.data.placement import CropGeometry, Placement, Variation, place_around, sample_placement
from steelgen.errors import InputError


def load_micrographs(root: Path, split: str, in_channels: int = 1) -> Micrographs:
    """Every pair of a split, decoded once into a memory-mapped cache that later runs and other processes share.

    Args:
        root: a dataset folder.
        split: train, val or test.
        in_channels: 1 turns RGB micrographs gray (ITU-R 601 luma); 3 repeats gray ones.

    Raises:
        InputError: if the split is missing, empty or holds a pair that cannot be used.
    """
    try:
        return open_cached_split(root, split, in_channels)
    except OSError:
        # A cache folder that cannot be written, as on some compute nodes: then every process decodes for itself.
        return decode_split(root, split, in_channels)


def cut_crop(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    geometry: CropGeometry,
    rng: np.random.Generator,
    augment: bool | str,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cuts one random crop; see `sample_placement`.

    Returns:
        image: (image_size, image_size) or (image_size, image_size, 3) uint8; mask: (image_size, image_size) uint8.
    """
    placement = sample_placement(mask.shape[0], mask.shape[1], geometry, rng, augment)
    return placement.cut_image(image), placement.cut_mask(mask)


class CropDataset(Dataset):
    """Crop number n of an endless sequence; an epoch visits every micrograph `crops_per_micrograph` times.

    Items are dictionaries: `image` (in_channels, S, S) float32 in [-1, 1], `mask` (S, S) int64 class indices, `number`
    int64, what `randomness` gives, and where they are asked for `instance_edges` (S, S) bool, `augmentation` (6,)
    float32 and, with `centers`, `island` (S, S) float32 in [0, 1].

    Args:
        micrographs: the split.
        geometry: size of the crops.
        seed: with the crop's number it decides everything.
        augment: see `sample_placement`.
        variation: further random changes.
        instance_edges: items tell where instances meet.
        augmentation: items tell how they were changed; see `Placement.describe_augmentation`.
        in_order: each pass visits the micrographs in the order of their names; else in a fresh random order.
        randomness: what else is random of crop number n; see `Generator.randomness`.
        min_crops: fewer of them in an epoch are an error.
        centers: crops lie around these places, each once a pass in a fresh random order, in place of anywhere.
        neighbors: `island` shows the other islands of its class too.
    """

    def __init__(
        self,
        micrographs: Micrographs,
        geometry: CropGeometry,
        seed: int,
        augment: bool | str,
        variation: Variation | None = None,
        instance_edges: bool = False,
        augmentation: bool = False,
        in_order: bool = False,
        randomness: Callable[[int], dict[str, torch.Tensor]] | None = None,
        min_crops: int = 1,
        centers: PatchCenters | None = None,
        neighbors: bool = False,
    ) -> None:
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
        self.variation = variation
        self.instance_edges = instance_edges and micrographs.instances is not None
        self.augmentation = augmentation
        self.in_order = in_order
        self.randomness = randomness
        if centers is not None:
            check_patch_size(micrographs, geometry.crop_size)
        self.centers = centers
        self.neighbors = neighbors
        self.patches = None if centers is None else centers.find(micrographs)
        area = float(np.mean([mask.size for mask in micrographs.masks]))
        self.crops_per_micrograph = max(1, round(area / geometry.crop_size**2))
        if len(self) < min_crops:
            raise InputError(
                f"{micrographs.info.name}: {len(micrographs)} micrographs hold {len(self)} crops, fewer than the "
                f"{min_crops} of a batch; lower train.train_batch_size"
            )

    def __len__(self) -> int:
        """Crops in an epoch."""
        if self.patches is not None:
            return len(self.patches)
        return len(self.micrographs) * self.crops_per_micrograph

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        image, mask = self.cut(number)
        item = {
            "image": image_to_tensor(image),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "number": torch.tensor(number),
        }
        if self.instance_edges:
            assert self.micrographs.instances is not None
            ids = self.place(number).cut_instances(self.micrographs.instances[self.micrograph_index(number)])
            item["instance_edges"] = torch.from_numpy(compute_instance_edges(ids))
        if self.centers is not None and self.patches is not None:
            patch = self.patches[self._patch_index(number)]
            shown = select_island(patch, self.micrographs, self.centers.kind, self.neighbors)
            item["island"] = torch.from_numpy(
                self.place(number).cut_share(shown, mirrored=self.centers.kind == "grid" or self.neighbors)
            )
        if self.augmentation:
            described = self.place(number).describe_augmentation(self.geometry.crop_size)
            item["augmentation"] = torch.from_numpy(described)
        return item if self.randomness is None else {**item, **self.randomness(number)}

    def cut(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Crop number `number` (any integer ≥ 0) as uint8 image and mask."""
        index, placement = self.micrograph_index(number), self.place(number)
        return placement.cut_image(self.micrographs.images[index]), placement.cut_mask(self.micrographs.masks[index])

    def place(self, number: int) -> Placement:
        """Where crop number `number` lies in its micrograph."""
        if self.patches is not None:
            center = self.patches[self._patch_index(number)].center
            rng = np.random.default_rng((self.seed, number))
            return place_around(center, self.geometry, rng, self.augment, self.variation or Variation())
        height, width = self.micrographs.masks[self.micrograph_index(number)].shape
        rng = np.random.default_rng((self.seed, number))
        return sample_placement(height, width, self.geometry, rng, self.augment, self.variation)

    def micrograph_index(self, number: int) -> int:
        """Which micrograph crop number `number` is cut from; each pass over the micrographs visits each once."""
        if self.patches is not None:
            return self.patches[self._patch_index(number)].micrograph
        pass_number, position = divmod(number, len(self.micrographs))
        return position if self.in_order else int(_permutation(self.seed, pass_number, len(self.micrographs))[position])

    def _patch_index(self, number: int) -> int:
        """Which patch crop number `number` is."""
        assert self.patches is not None
        pass_number, position = divmod(number, len(self.patches))
        return position if self.in_order else int(_permutation(self.seed, pass_number, len(self.patches))[position])


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

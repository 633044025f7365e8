"""Reproducible training crops: crop number n is a pure function of (seed, n).

There is no state, so order and crops do not depend on the number of workers or processes, and training resumes within
an epoch from the number of the next crop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

_BLOCK = 64
"""Crops over which the shares of a mixture are kept."""
_SHARE_STREAM = 5
"""Random stream of the shares, independent of the crop positions."""


def load_micrographs(root: Path, split: str, in_channels: int = 1) -> Micrographs:
    """Loads a split from the memory-mapped cache that runs and processes share; see `open_cached_split`.

    Raises:
        InputError: if the split is missing, empty or contains an invalid pair.
    """
    try:
        return open_cached_split(root, split, in_channels)
    except OSError:
        # On compute nodes without a writable cache folder, each process decodes the split itself.
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


@dataclass(eq=False, repr=False)
class CropDataset(Dataset):
    """Endless sequence of crops; an epoch has `crops_per_micrograph` crops of each micrograph.

    Items are dictionaries: `image` (in_channels, S, S) float32 in [-1, 1], `mask` (S, S) int64 class indices, `number`
    int64, the entries of `randomness` and `derive`, and optionally `conditions` (K,) float32, `instance_edges` (S, S)
    bool, with `centers` `island` (S, S) float32 in [0, 1], and with `source` `source_image` and `source_mask`.

    Raises:
        InputError: if a micrograph is smaller than image_size, or an epoch has fewer than `min_crops` crops.
    """

    micrographs: Micrographs
    geometry: CropGeometry
    seed: int
    """Determines each crop together with its number."""
    augment: bool | str
    """See `sample_placement`."""
    variation: Variation | None = None
    instance_edges: bool = False
    """Add the edges between instances to the items, if the micrographs have instances."""
    in_order: bool = False
    """Visit the micrographs sorted by name in each pass; otherwise in a new random order per pass."""
    randomness: Callable[[int], dict[str, torch.Tensor]] | None = None
    """Further random entries of crop number n; see `Generator.randomness`."""
    derive: Callable[[NDArray[np.uint8]], dict[str, torch.Tensor]] | None = None
    """Further entries computed from the mask (S, S) of a crop."""
    min_crops: int = 1
    """Smallest number of crops in an epoch."""
    centers: PatchCenters | None = None
    """Center the crops on these places, each once per pass in a new random order; None means random places."""
    neighbors: bool = False
    """Show the other islands of the same class in `island`, too."""
    source: CropDataset | None = None
    """Crops of other micrographs, with placements of their own; crop n adds its `source_image` and `source_mask`."""

    def __post_init__(self) -> None:
        smallest = min(min(mask.shape) for mask in self.micrographs.masks)
        if smallest < self.geometry.image_size:
            raise InputError(
                f"{self.micrographs.info.name}: the shortest edge of the micrographs is {smallest} px, less than "
                f"image_size {self.geometry.image_size}"
            )
        self.instance_edges = self.instance_edges and self.micrographs.instances is not None
        edges = [self._fit(index).crop_size for index in range(len(self.micrographs))]
        if self.centers is not None:
            check_patch_size(self.micrographs, edges)
        self.patches = None if self.centers is None else self.centers.find(self.micrographs)
        # In units of the common crop size, which leaves the areas of a single dataset as they are.
        crop_size, sizes = self.geometry.crop_size, [mask.size for mask in self.micrographs.masks]
        area = float(np.mean([size * (crop_size / edge) ** 2 for size, edge in zip(sizes, edges, strict=True)]))
        self.crops_per_micrograph = max(1, round(area / crop_size**2))
        self._limits = self._find_limits() if self.micrographs.shares else None
        if len(self) < self.min_crops:
            raise InputError(
                f"{self.micrographs.info.name}: {len(self.micrographs)} micrographs have {len(self)} crops, fewer than "
                f"the {self.min_crops} of a batch; lower train.train_batch_size"
            )

    def __len__(self) -> int:
        """Number of crops in an epoch."""
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
        if self.micrographs.conditions is not None:
            item["conditions"] = torch.from_numpy(self.micrographs.conditions[self.micrograph_index(number)])
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
        if self.source is not None:
            other = self.source[number]
            item |= {"source_image": other["image"], "source_mask": other["mask"]}
        if self.derive is not None:
            item.update(self.derive(mask))
        return item if self.randomness is None else {**item, **self.randomness(number)}

    def cut(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Cuts crop number `number` (≥ 0) as uint8 image and mask."""
        index, placement = self.micrograph_index(number), self.place(number)
        return placement.cut_image(self.micrographs.images[index]), placement.cut_mask(self.micrographs.masks[index])

    def place(self, number: int) -> Placement:
        """Returns the placement of crop number `number` in its micrograph."""
        if self.patches is not None:
            center = self.patches[self._patch_index(number)].center
            rng = np.random.default_rng((self.seed, number))
            geometry = self._fit(self.micrograph_index(number))
            return place_around(center, geometry, rng, self.augment, self.variation or Variation())
        index = self.micrograph_index(number)
        height, width = self.micrographs.masks[index].shape
        rng = np.random.default_rng((self.seed, number))
        return sample_placement(height, width, self._fit(index), rng, self.augment, self.variation)

    def micrograph_index(self, number: int) -> int:
        """Returns the index of the micrograph of crop number `number`; each pass visits each micrograph once, in a
        mixture as often as its dataset's share of the crops wants."""
        if self.patches is not None:
            return self.patches[self._patch_index(number)].micrograph
        return self._choose(number, len(self.micrographs))

    def _patch_index(self, number: int) -> int:
        """Which patch crop number `number` is."""
        assert self.patches is not None
        return self._choose(number, len(self.patches))

    def _choose(self, number: int, count: int) -> int:
        """Which of `count` micrographs or patches crop number `number` is from."""
        if self._limits is not None:
            return choose_by_share(self.seed, number, self._limits)
        pass_number, position = divmod(number, count)
        return position if self.in_order else int(_permutation(self.seed, pass_number, count)[position])

    def _find_limits(self) -> NDArray[np.float64]:
        """Cumulative chances of the micrographs or patches of a mixture."""
        members = self.micrographs.members
        if self.patches is not None:
            members = tuple(members[patch.micrograph] for patch in self.patches)
        return np.cumsum(self.micrographs.weigh(members))

    def _fit(self, index: int) -> CropGeometry:
        return self.micrographs.fit_geometry(index, self.geometry)


def choose_by_share(seed: int, number: int, limits: NDArray[np.float64]) -> int:
    """Chooses an item for crop number `number`, a function of (seed, number).

    Each block of 64 crops has one quantile in each 64th of [0, 1), in random order (stratified sampling), so that
    shares are kept within any few crops.

    Args:
        limits: cumulative chances of the items, (N,), the last 1.
    """
    block, position = divmod(number, _BLOCK)
    quantile = _stratify(seed, block)[position]
    return min(int(np.searchsorted(limits, quantile, side="right")), len(limits) - 1)


@lru_cache(maxsize=4)
def _permutation(seed: int, pass_number: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, pass_number, 1)).permutation(length)


@lru_cache(maxsize=4)
def _stratify(seed: int, block: int) -> NDArray[np.float64]:
    shift = np.random.default_rng((seed, block, _SHARE_STREAM)).random()
    return (_permutation(seed, block, _BLOCK) + shift) / _BLOCK


@dataclass(eq=False, repr=False)
class CropSampler(Sampler):
    """Endless batches of consecutive crop numbers for one process, starting after `start` batches.

    Micro-batch k of all W processes covers crops k·B·W to (k+1)·B·W; process r gets the r-th B of them. The union over
    the processes equals the batch of a single process with batch size B·W.
    """

    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    start: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        for micro_batch in itertools.count(self.start):
            first = (micro_batch * self.num_processes + self.process_index) * self.batch_size
            yield list(range(first, first + self.batch_size))


def image_to_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """Converts uint8 (H, W) or (H, W, 3) to float32 (C, H, W) in [-1, 1]."""
    array = image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1)


def tensor_to_image(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Converts float (C, H, W) in [-1, 1] to uint8 (H, W) or (H, W, 3); values outside the range are clipped."""
    array = ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))


def look_up_conditions(
    micrographs: Micrographs, geometry: CropGeometry, count: int, seed: int = 0
) -> torch.Tensor | None:
    """Returns the conditions (count, K) of the crops that `cut_crops` cuts; None without conditions."""
    if micrographs.conditions is None:
        return None
    dataset = CropDataset(micrographs, geometry, seed, augment=False)
    return torch.from_numpy(micrographs.conditions[[dataset.micrograph_index(number) for number in range(count)]])


def cut_crops(
    micrographs: Micrographs, geometry: CropGeometry, count: int, seed: int = 0, augment: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cuts `count` random crops, evenly distributed over the micrographs, for evaluation.

    Returns:
        images: (count, S, S) or (count, S, S, 3) uint8; masks: (count, S, S) uint8.
    """
    dataset = CropDataset(micrographs, geometry, seed, augment)
    images, masks = zip(*(dataset.cut(number) for number in range(count)), strict=True)
    return np.stack(images), np.stack(masks)

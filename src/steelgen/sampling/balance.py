"""Choosing masks so that all classes are drawn about as often."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.charts import chart_style
from steelgen.config.sample import BalancedMasks
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import label_islands
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import new_file, save_json
from steelgen.sampling.masks import SourceMask, load_source_info
from steelgen.sampling.places import place_crop

_MAX_POOL = 4096
_MAX_EXCHANGES = 500
_KEPT_MASKS = 8192
"""Blocks are remembered as far as they hold the latest so many masks; for others all are chosen anew."""
ATTEMPT_STRIDE = 10**9
"""Attempt a at image i is drawn as number i + a·10⁹: what is kept depends on no other image. Balanced masks stay what
they are at further attempts."""


def count_classes(mask: NDArray[np.uint8], num_classes: int, by_pixels: bool) -> NDArray[np.int64]:
    """Pixels of each class in a mask (H, W), or its objects: islands; (num_classes,)."""
    if by_pixels:
        return np.bincount(mask.ravel(), minlength=256)[:num_classes]
    return np.array([label_islands(mask == index)[1] for index in range(num_classes)])


def compute_class_difference(counts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """By how much the most frequent class exceeds the rarest, relative to the rarest: max/min − 1; infinite at 0."""
    rarest, most = counts.min(), counts.max()
    if most == 0:
        return 0.0
    return float(most / rarest - 1) if rarest > 0 else float("inf")


def choose_balanced(
    counts: NDArray[np.int64], number: int, max_class_dif: float, start: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Chooses masks, any of them more than once, so that `start` plus their counts differ by at most `max_class_dif`.

    Each choice makes the counts as even as it can; masks are then exchanged for others as long as the difference
    is too large and an exchange lowers it. Of equally good masks the least used is taken, then by chance.

    Args:
        counts: (M, K) how much of each class each mask has.
        number: masks to choose.
        max_class_dif: see `compute_class_difference`; where it cannot be met, the best that was reached is returned.
        start: (K,) what is there already.
        seed: of the chances.

    Returns:
        (number,) indices of masks.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))
    used = np.zeros(len(counts), np.int64)
    total = start.astype(np.float64)
    chosen = np.empty(number, np.int64)
    for position in range(number):
        unevenness = _compute_unevenness(total + counts[order])
        best = order[unevenness <= unevenness.min() * (1 + 1e-12)]
        index = best[np.argmin(used[best])]
        chosen[position] = index
        used[index] += 1
        total += counts[index]
    for _ in range(_MAX_EXCHANGES):
        if compute_class_difference(total) <= max_class_dif or not _exchange_one(counts, chosen, total, rng):
            break
    return chosen


def _compute_unevenness(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of the counts over classes relative to their squared mean, for each row."""
    mean = totals.mean(axis=1)
    return totals.var(axis=1) / np.where(mean > 0, mean, 1) ** 2


def _exchange_one(
    counts: NDArray[np.int64], chosen: NDArray[np.int64], total: NDArray[np.float64], rng: np.random.Generator
) -> bool:
    """Makes the exchange of one chosen mask that lowers the class difference most; False if none does."""
    leaving = np.unique(chosen)
    coming = np.arange(len(counts))
    limit = 512  # a sample is enough of what is plenty, and bounds memory
    leaving = rng.permutation(leaving)[:limit]
    coming = rng.permutation(coming)[:limit]
    after = total - counts[leaving][:, None] + counts[coming][None]  # (leaving, coming, K)
    rarest, most = after.min(axis=2), after.max(axis=2)
    difference = np.where(rarest > 0, most / np.where(rarest > 0, rarest, 1) - 1, np.inf)
    out, into = np.unravel_index(np.argmin(difference), difference.shape)
    if difference[out, into] >= compute_class_difference(total):
        return False
    chosen[np.flatnonzero(chosen == leaving[out])[-1]] = coming[into]
    total += counts[coming[into]] - counts[leaving[out]]
    return True


@dataclass(frozen=True)
class BalanceReport:
    """Shares of the balanced classes in the real masks and in those drawn."""

    class_names: list[str]
    before: list[float]
    after: list[float]
    class_difference: float
    """max/min − 1 of what was to be balanced."""
    max_class_dif: float
    absent: list[str]
    """Classes that no mask holds, so that nothing can balance them."""

    @property
    def met(self) -> bool:
        """Whether the difference is within what was asked for."""
        return self.class_difference <= self.max_class_dif


@dataclass(frozen=True)
class _Block:
    """Masks chosen together."""

    chosen: NDArray[np.int64]
    """(block_size,) places in the pool."""
    counts_before: NDArray[np.int64]
    """(K,) what all masks of the blocks before hold."""


class BalancedSource:
    """Masks chosen block by block so that the classes are balanced after each block.

    The pool is one epoch of crops; what is balanced is what they hold, pixel by pixel or object by object.

    Raises:
        InputError: if the classes differ from the generator's, or no mask holds a class that counts.
    """

    def __init__(self, config: BalancedMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        own = load_source_info(config.dataset, info)
        for index in config.ejection_classes:
            if index >= own.num_classes:
                raise InputError(f"ejection_classes: {index} is no class, there are {own.num_classes} from 0")
        micrographs = load_micrographs(config.dataset, config.split, geometry.in_channels)
        self._crops = CropDataset(micrographs, geometry, seed, augment=False)
        pool = np.arange(min(len(self._crops), _MAX_POOL))
        by_pixels = config.based_on_pixel_count
        held = np.stack([count_classes(self._crops.cut(int(n))[1], own.num_classes, by_pixels) for n in pool])
        kept = [index for index in range(own.num_classes) if index not in config.ejection_classes]
        self._classes = [index for index in kept if held[:, index].any()]
        self._absent = [own.class_names[index] for index in kept if not held[:, index].any()]
        useful = held[:, self._classes].any(axis=1) if self._classes else np.zeros(len(pool), bool)
        if not useful.any():
            raise InputError(f"{config.dataset}: no mask of {config.split} holds a class outside ejection_classes")
        self._pool, self._counts = pool[useful], held[useful][:, self._classes]
        self._real = held[:, self._classes].sum(axis=0)
        self._names = [own.class_names[index] for index in self._classes]
        self._config, self._seed = config, seed
        self._start_anew()

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        index %= ATTEMPT_STRIDE
        block, position = self._find(index)
        number = int(self._pool[block.chosen[position]])
        config, micrographs = self._config, self._crops.micrographs
        placement = self._crops.place(number)
        if config.use_mask_augmentation:
            symmetry = int(np.random.default_rng((self._seed, index, 5)).integers(8))
            placement = replace(placement, symmetry=symmetry)
        chosen = self._crops.micrograph_index(number)
        stem = micrographs.stems[chosen]
        place = place_crop(config.dataset, config.split, stem, placement)
        image, mask = place.cut_image(micrographs.images[chosen]), placement.cut_mask(micrographs.masks[chosen])
        return SourceMask(mask, image, f"{config.split}/masks/{stem}", place)

    @property
    def stems(self) -> list[str]:
        """See `FileMaskSource.stems`."""
        return self._crops.micrographs.stems

    def trace(self, index: int) -> str:
        """See `FileMaskSource.trace`."""
        block, position = self._find(index)
        return self.stems[self._crops.micrograph_index(int(self._pool[block.chosen[position]]))]

    def report(self, number: int) -> BalanceReport:
        """The shares after the first `number` masks."""
        block, position = self._find(number - 1)
        drawn = block.counts_before + self._counts[block.chosen[: position + 1]].sum(axis=0)
        judged = drawn if self._config.based_on_generated_data_only else drawn + self._real
        return BalanceReport(
            self._names,
            (self._real / self._real.sum()).tolist(),
            (drawn / max(drawn.sum(), 1)).tolist(),
            compute_class_difference(judged),
            self._config.max_class_dif,
            self._absent,
        )

    def _find(self, index: int) -> tuple[_Block, int]:
        """The block of mask number `index` and its position there."""
        number, position = divmod(index, self._config.block_size)
        if number < self._next - len(self._kept):
            self._start_anew()
        while self._next <= number:
            self._choose_block()
        return self._kept[number - self._next], position

    def _start_anew(self) -> None:
        self._next = 0
        self._kept: deque[_Block] = deque(maxlen=max(2, _KEPT_MASKS // self._config.block_size))
        self._drawn = np.zeros_like(self._real)

    def _choose_block(self) -> None:
        config = self._config
        start = self._drawn if config.based_on_generated_data_only else self._drawn + self._real
        chosen = choose_balanced(self._counts, config.block_size, config.max_class_dif, start, self._seed + self._next)
        self._kept.append(_Block(chosen, self._drawn))
        self._drawn = self._drawn + self._counts[chosen].sum(axis=0)
        self._next += 1


def save_balance(folder: Path, report: BalanceReport) -> None:
    """Writes balance.json and balance.png: each class's share before (gray) and after (blue), even shares as a line."""
    save_json(
        folder / "balance.json",
        {
            "classes": report.class_names,
            "before": report.before,
            "after": report.after,
            "class_difference": report.class_difference if np.isfinite(report.class_difference) else None,
            "max_class_dif": report.max_class_dif,
            "met": report.met,
            "absent": report.absent,
        },
    )
    from matplotlib.figure import Figure

    classes = np.arange(len(report.class_names))
    with chart_style():
        figure = Figure((1.5 + 1.2 * len(classes), 3.5), layout="constrained")
        axes = figure.add_subplot()
        for shift, shares, color, label in (
            (-0.2, report.before, "#999999", "real"),
            (0.2, report.after, "#0072b2", "drawn"),
        ):
            axes.bar_label(axes.bar(classes + shift, shares, 0.38, color=color, label=label), fmt="{:.1%}")
        axes.axhline(1 / len(classes), color="#d55e00", label="even")
        axes.set_xticks(classes, report.class_names)
        figure.legend(loc="outside upper left", ncols=3)
        with new_file(folder / "balance.png") as working:
            figure.savefig(working, format="png")

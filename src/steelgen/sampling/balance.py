"""Class balancing: chooses masks so that all classes occur equally often."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steelgen.charts import chart_style
from steelgen.config.mask_sources import BalancedMasks
from steelgen.data.folder import DatasetInfo
from steelgen.data.islands import label_islands
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import new_file, save_json
from steelgen.sampling.masks import CropSource, SourceMask

_MAX_POOL = 4096
_MAX_EXCHANGES = 500
_EXCHANGE_SAMPLE = 512
"""Masks on each side of an exchange; bounds memory."""
_KEPT_MASKS = 8192
"""Masks of the latest blocks kept in memory; earlier blocks are recomputed."""
ATTEMPT_STRIDE = 10**9
"""Attempt a at image i uses mask and seed number i + a·10⁹, so that it depends on no other image. Balanced masks stay
the same on further attempts."""


def count_classes(mask: NDArray[np.uint8], num_classes: int, by_pixels: bool) -> NDArray[np.int64]:
    """Counts the pixels, or else the islands, of each class in a mask (H, W) as (num_classes,)."""
    if by_pixels:
        return np.bincount(mask.ravel(), minlength=256)[:num_classes]
    return np.array([label_islands(mask == index)[1] for index in range(num_classes)])


def compute_class_difference(counts: ArrayLike) -> NDArray[np.float64]:
    """Computes max/min − 1 over the last axis, the classes; inf where a class is absent, 0 where all are."""
    rarest, most = np.min(counts, axis=-1), np.max(counts, axis=-1)
    return np.where(rarest > 0, most / np.maximum(rarest, 1) - 1, np.where(most > 0, np.inf, 0.0))


def choose_balanced(
    counts: NDArray[np.int64], number: int, max_class_dif: float, start: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Chooses masks, with repetition, so that `start` plus their counts is balanced over the classes.

    Greedily takes the mask that gives the most even counts; ties go to the least used mask, then to chance. Then
    exchanges masks while the class difference exceeds `max_class_dif` and an exchange lowers it.

    Args:
        counts: (M, K) count of each class in each mask.
        max_class_dif: target of `compute_class_difference`; if it cannot be met, the best result is returned.
        start: (K,) existing counts.

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
    """Computes the variance over classes relative to the squared mean, for each row."""
    mean = totals.mean(axis=1)
    return totals.var(axis=1) / np.where(mean > 0, mean, 1) ** 2


def _exchange_one(
    counts: NDArray[np.int64], chosen: NDArray[np.int64], total: NDArray[np.float64], rng: np.random.Generator
) -> bool:
    """Exchanges the one chosen mask that lowers the class difference most; returns False if none does."""
    leaving = rng.permutation(np.unique(chosen))[:_EXCHANGE_SAMPLE]
    coming = rng.permutation(np.arange(len(counts)))[:_EXCHANGE_SAMPLE]
    difference = compute_class_difference(total - counts[leaving][:, None] + counts[coming][None])  # (leaving, coming)
    out, into = np.unravel_index(np.argmin(difference), difference.shape)
    if difference[out, into] >= compute_class_difference(total):
        return False
    chosen[np.flatnonzero(chosen == leaving[out])[-1]] = coming[into]
    total += counts[coming[into]] - counts[leaving[out]]
    return True


@dataclass(frozen=True)
class BalanceReport:
    """Shares of the balanced classes in the real masks (before) and in the chosen masks (after)."""

    classes: list[str]
    before: list[float]
    after: list[float]
    class_difference: float | None
    """See `compute_class_difference`; None where it is infinite."""
    max_class_dif: float
    met: bool
    """Whether the class difference is within the limit."""
    absent: list[str]
    """Classes that occur in no mask and cannot be balanced."""


@dataclass(frozen=True)
class _Block:
    """Masks chosen together."""

    chosen: NDArray[np.int64]
    """(block_size,) indices into the pool."""
    counts_before: NDArray[np.int64]
    """(K,) class counts of all earlier blocks."""


class BalancedSource(CropSource):
    """Masks chosen in blocks, from a pool of one epoch of crops, so that the classes are balanced after each block.

    Raises:
        InputError: if the classes differ from the generator's, or no mask contains a balanced class.
    """

    _config: BalancedMasks

    def __init__(self, config: BalancedMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        super().__init__(config, info, geometry, seed)
        own = self._info
        for index in config.ejection_classes:
            if index >= own.num_classes:
                raise InputError(f"ejection_classes: class index {index} is not below num_classes {own.num_classes}")
        pool = np.arange(min(len(self._crops), _MAX_POOL))
        by_pixels = config.based_on_pixel_count
        counts = np.stack([count_classes(self._crops.cut(int(n))[1], own.num_classes, by_pixels) for n in pool])
        balanced = [index for index in range(own.num_classes) if index not in config.ejection_classes]
        present = [index for index in balanced if counts[:, index].any()]
        useful = counts[:, present].any(axis=1)
        if not useful.any():
            raise InputError(
                f"{config.dataset}: no mask of the {config.split} split contains a class outside ejection_classes"
            )
        self._absent = [own.class_names[index] for index in balanced if index not in present]
        self._names = [own.class_names[index] for index in present]
        self._pool, self._counts = pool[useful], counts[useful][:, present]
        self._real = counts[:, present].sum(axis=0)
        self._seed = seed
        self._start_over()

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`."""
        number = self._crop_number(index)
        placement = self._crops.place(number)
        if self._config.use_mask_augmentation:
            rng = np.random.default_rng((self._seed, index % ATTEMPT_STRIDE, 5))
            placement = replace(placement, symmetry=int(rng.integers(8)))
        return self._cut_pair(number, placement)

    def report(self, number: int) -> BalanceReport:
        """Reports the class shares of the first `number` masks."""
        block, position = self._find(number - 1)
        chosen = block.counts_before + self._counts[block.chosen[: position + 1]].sum(axis=0)
        total = chosen if self._config.based_on_generated_data_only else chosen + self._real
        difference, limit = float(compute_class_difference(total)), self._config.max_class_dif
        return BalanceReport(
            self._names,
            (self._real / self._real.sum()).tolist(),
            (chosen / max(chosen.sum(), 1)).tolist(),
            difference if np.isfinite(difference) else None,
            limit,
            difference <= limit,
            self._absent,
        )

    def _crop_number(self, index: int) -> int:
        block, position = self._find(index % ATTEMPT_STRIDE)
        return int(self._pool[block.chosen[position]])

    def _find(self, index: int) -> tuple[_Block, int]:
        """Returns the block of mask number `index` and the position in it."""
        number, position = divmod(index, self._config.block_size)
        if number < self._next - len(self._kept):
            self._start_over()
        while self._next <= number:
            self._choose_block()
        return self._kept[number - self._next], position

    def _start_over(self) -> None:
        self._next = 0
        self._kept: deque[_Block] = deque(maxlen=max(2, _KEPT_MASKS // self._config.block_size))
        self._total = np.zeros_like(self._real)

    def _choose_block(self) -> None:
        config = self._config
        start = self._total if config.based_on_generated_data_only else self._total + self._real
        chosen = choose_balanced(self._counts, config.block_size, config.max_class_dif, start, self._seed + self._next)
        self._kept.append(_Block(chosen, self._total))
        self._total = self._total + self._counts[chosen].sum(axis=0)
        self._next += 1


def save_balance(folder: Path, report: BalanceReport) -> None:
    """Writes balance.json and balance.png, a bar chart of the class shares before and after."""
    from matplotlib.figure import Figure

    save_json(folder / "balance.json", asdict(report))
    classes = np.arange(len(report.classes))
    with chart_style():
        figure = Figure((1.5 + 1.2 * len(classes), 3.5), layout="constrained")
        axes = figure.add_subplot()
        for shift, shares, color, label in (
            (-0.2, report.before, "#999999", "real"),
            (0.2, report.after, "#0072b2", "generated"),
        ):
            axes.bar_label(axes.bar(classes + shift, shares, 0.38, color=color, label=label), fmt="{:.1%}")
        axes.axhline(1 / len(classes), color="#d55e00", label="even")
        axes.set_xticks(classes, report.classes)
        figure.legend(loc="outside upper left", ncols=3)
        with new_file(folder / "balance.png") as working:
            figure.savefig(working, format="png")

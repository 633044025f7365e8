"""Masks made by a generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.learned import LearnedMasks
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators import DrawRequest, Generator
from steelgen.generators.saved import hash_weights
from steelgen.sampling.fractions import check_total, find_label, stack_fractions
from steelgen.sampling.generate import prepare_generator
from steelgen.sampling.masks import SourceMask

_STREAM = 7
"""Separates the random stream from those of crops and images."""


@dataclass
class _Search:
    """Attempts at one mask."""

    index: int
    rng: np.random.Generator
    wanted: dict[int, float]
    """Phase fractions by class index."""
    attempts: int = 0
    closest: dict[int, float] = field(default_factory=dict)
    """The closest phase fraction of each class in all attempts."""
    found: SourceMask | None = None


class LearnedSource:
    """See `LearnedMasks`. Runs a network, so it belongs in the main process.

    Raises:
        InputError: if the generator cannot be used, or a class is unknown.
    """

    def __init__(self, config: LearnedMasks, info: DatasetInfo, geometry: CropGeometry, seed: int) -> None:
        self._generator = load_mask_maker("mask_source.generator", config.generator, info, geometry)
        self._size = config.size or (geometry.image_size, geometry.image_size)
        smallest = max(geometry.image_size, self._generator.geometry.image_size)
        if min(self._size) < smallest:
            raise InputError(f"mask_source.size {list(self._size)}: smaller than an image_size of {smallest}")
        self._ranges = resolve_ranges(config, info)
        self._config, self._info, self._seed = config, info, seed
        self._digest = hash_weights(config.generator)

    def draw(self, index: int) -> SourceMask:
        """See `MaskSource.draw`.

        Raises:
            InputError: if no attempt meets the phase fractions.
        """
        return self.draw_batch([index])[0]

    def draw_batch(self, indices: Sequence[int]) -> list[SourceMask]:
        """See `BatchedMaskSource.draw_batch`; masks that miss their phase fractions are drawn again together."""
        searches = [self._start(index) for index in indices]
        for _ in range(self._config.max_attempts):
            missing = [search for search in searches if search.found is None]
            if not missing:
                break
            seeds = [int(search.rng.integers(2**62)) for search in missing]
            masks = self._generate(seeds, [search.wanted for search in missing])
            for search, seed, mask in zip(missing, seeds, masks, strict=True):
                self._judge(search, seed, mask)
        return [search.found or self._refuse(search) for search in searches]

    def _start(self, index: int) -> _Search:
        rng = np.random.default_rng((self._seed, index, _STREAM))
        return _Search(index, rng, {label: float(rng.uniform(*limits)) for label, limits in self._ranges.items()})

    def _judge(self, search: _Search, seed: int, mask: NDArray[np.uint8]) -> None:
        search.attempts += 1
        shares = {label: float((mask == label).mean()) for label in search.wanted}
        for label, share in shares.items():
            if abs(share - search.wanted[label]) < abs(search.closest.get(label, math.inf) - search.wanted[label]):
                search.closest[label] = share
        if any(abs(shares[label] - wanted) > self._config.tolerance for label, wanted in search.wanted.items()):
            return
        names = self._info.class_names
        origin = {
            "generator": str(self._config.generator),
            "model_sha256": self._digest,
            "seed": seed,
            "attempts": search.attempts,
            "phase_fraction": {names[label]: round(wanted, 6) for label, wanted in search.wanted.items()},
        }
        search.found = SourceMask(mask, None, f"learned, seed {seed}", origin=origin)

    def _refuse(self, search: _Search) -> NoReturn:
        missed = ", ".join(
            f"{self._info.class_names[label]!r} {wanted:.3g} (closest {search.closest[label]:.3g})"
            for label, wanted in search.wanted.items()
        )
        raise InputError(
            f"mask_source.phase_fraction: mask {search.index} missed {missed} in all of {search.attempts} attempts; "
            "choose fractions nearer to those of the training masks, or raise mask_source.tolerance or max_attempts"
        )

    def _generate(self, seeds: Sequence[int], wanted: Sequence[dict[int, float]]) -> NDArray[np.uint8]:
        """Generates masks (N, H, W)."""
        # Other generators are asked until a mask has the fractions by chance.
        steers = "fractions" in self._generator.takes
        fractions = stack_fractions(wanted, self._info.num_classes) if steers else None
        blank = torch.full((len(seeds), *self._size), self._info.ignore_index)
        only_masks = frozenset({"masks"})
        request = DrawRequest(seeds, blank, solver=self._config.solver, fractions=fractions, wanted=only_masks)
        masks = self._generator.draw(request).masks
        assert masks is not None
        return masks.cpu().numpy().astype(np.uint8)


def load_mask_maker(field: str, path: Path, info: DatasetInfo, geometry: CropGeometry) -> Generator:
    """Loads a generator that makes masks of the classes `info` at the scale of `geometry`.

    Raises:
        InputError: if it cannot be loaded, makes no masks, or has other classes or another scale; `field` is named.
    """
    generator = prepare_generator(path)
    if "masks" not in generator.makes:
        raise InputError(f"{field}: {path} is of kind {generator.kind}, which makes no masks")
    if generator.info.class_names != info.class_names:
        own, theirs = (", ".join(each.class_names) or "no classes" for each in (generator.info, info))
        raise InputError(f"{field}: {path} has the classes {own}, not {theirs}")
    check_scale(field, path, generator.geometry, geometry)
    return generator


def check_scale(field: str, path: Path, own: CropGeometry, geometry: CropGeometry) -> None:
    """Raises InputError if the pixels of a generator with geometry `own` have another size than those of images."""
    own_scale, scale = (each.crop_size / each.image_size for each in (own, geometry))
    if not math.isclose(own_scale, scale):
        raise InputError(
            f"{field}: a pixel of {path} is {own_scale:g} px of a micrograph, but {scale:g} px in the generator of the "
            "images; train both with the same crop_size / image_size"
        )


def resolve_ranges(config: LearnedMasks, info: DatasetInfo) -> dict[int, tuple[float, float]]:
    """Converts the phase fractions of a config to (lowest, highest) by class index.

    Raises:
        InputError: if a class is unknown, a range is reversed, or the fractions cannot be met together.
    """
    field, ranges = "mask_source.phase_fraction", {}
    for name, limits in config.phase_fraction.items():
        label = find_label(field, name, info)
        low, high = limits if isinstance(limits, tuple) else (limits, limits)
        if low > high:
            raise InputError(f"{field}.{name} [{low:g}, {high:g}]: the smaller fraction must come first")
        ranges[label] = (low, high)
    most, least = (sum(limits[place] for limits in ranges.values()) for place in (1, 0))
    check_total(field, most)
    if len(ranges) == info.num_classes and least < 1:
        raise InputError(f"{field}: fractions of all classes add up to {least:g}, less than 1; leave one class free")
    return ranges

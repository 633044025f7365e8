"""Random numbers of training crops besides their placement: functions of the seed and the crop number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_GOLDEN_RATIO = 0.6180339887498949
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class CropRandomness:
    """Noise, timestep quantile and mask dropout of crop number n, functions of (seed, n)."""

    seed: int
    shape: tuple[int, int, int]
    """(C, H, W) of the crop."""
    mask_dropout: float
    """Probability of replacing the mask by the null mask."""
    conditions: int = 0
    """Number of conditions. Each is dropped by itself with the same probability, so that any of them may be left open
    in sampling, and all of them with half of the dropped masks, for guidance and for conditions without a mask."""

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Returns `noise` (C, H, W) float32, `fraction` float64 in [0, 1), `dropped` bool and, with conditions,
        `conditions_dropped` (K,) bool of one crop."""
        seed = crop_seed(number, self.seed)
        rng = np.random.default_rng((seed, 4))
        dropped = rng.random() < self.mask_dropout
        item = {
            "noise": torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)),
            "fraction": sample_fractions(torch.tensor(number), self.seed),
            "dropped": torch.tensor(dropped),
        }
        if self.conditions:
            alone = rng.random(self.conditions) < self.mask_dropout
            item["conditions_dropped"] = torch.from_numpy(alone | (dropped and rng.random() < 0.5))
        return item


@dataclass(frozen=True)
class HeldOutRandomness:
    """The same for crops 0 to count - 1 of held-out micrographs, without mask dropout.

    Quantiles are ranks of the golden-ratio sequence: exactly even over the schedule, for each micrograph too.
    """

    count: int
    shape: tuple[int, int, int]

    def __call__(self, number: int) -> dict[str, Tensor]:
        """See `CropRandomness`."""
        sampled = CropRandomness(_HELD_OUT_SEED, self.shape, 0.0)(number)
        return {**sampled, "fraction": (self._ranks[number] + 0.5) / self.count}

    @cached_property
    def _ranks(self) -> Tensor:
        return sample_fractions(torch.arange(self.count), _HELD_OUT_SEED).argsort().argsort()


def sample_fractions(numbers: Tensor, seed: int) -> Tensor:
    """Maps crop numbers (N,) int64 to quantiles in [0, 1), float64, spread evenly over consecutive crops.

    The additive golden-ratio sequence is uniform like independent samples but has lower variance, as the
    low-discrepancy sampler of Kingma et al. 2021 (arXiv 2107.00630, appendix I.1).
    """
    offset = np.random.default_rng((seed, 2)).random()
    return (offset + numbers.double() * _GOLDEN_RATIO) % 1


def crop_seed(number: int, seed: int) -> int:
    """Returns a 63-bit random seed for a crop number."""
    return int(np.random.default_rng((seed, number, 3)).integers(2**63))


def build_noise_sources(shape: Sequence[int], seeds: Sequence[int]) -> list[torch.Generator]:
    """Builds one generator per image for noise between solver steps, advanced past the noise of `randn_by_seed`."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    for source in sources:
        torch.randn(*shape, generator=source)
    return sources

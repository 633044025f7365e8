"""What the training images are like on average, as a start for drawing: SCP-Diff's noise priors.

Source: Gao et al. 2024, "SCP-Diff: Spatial-Categorical Joint Prior for Diffusion Based Semantic Image Synthesis"
(arXiv 2403.09638): mean and standard deviation by place, by class, or by both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from steelgen.config.sample import NoisePriorSection
from steelgen.config.solver import AnySolverSection
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.errors import InputError
from steelgen.generators import Generator, ImageMoments
from steelgen.sampling.masks import load_source_info

PRIOR_FILE = "noise_prior.safetensors"
"""In the output folder: the moments that a run's images start from."""
_LEAST_SIGNAL = 1e-3
"""√ᾱ below which the mean of the images is lost in the noise."""
_LEAST_COUNT = 16
"""Crops that must show a class at a place; elsewhere the joint prior takes the moments of the class."""


class NoisePrior:
    """Moments by class and place.

    Args:
        mean: (R, C, h, w) in [-1, 1]. R is 1 where classes make no difference, else one row a class and a last one for
            ignored pixels; h and w are 1 where places make none.
        deviation: the same for standard deviations.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean, self.deviation = mean, deviation

    def look_up(self, masks: Tensor) -> ImageMoments:
        """The moments at every pixel of masks (N, H, W) of class indices.

        Raises:
            InputError: if places matter and the masks are not of the network's own size.
        """
        rows, channels, height, width = self.mean.shape
        if height > 1 and masks.shape[1:] != (height, width):
            raise InputError(
                f"noise_prior: knows places in images of {width}x{height} px, not of "
                f"{masks.shape[2]}x{masks.shape[1]}; take kind 'class' for those"
            )
        row = masks.clamp(max=rows - 1)[:, None]  # (N, 1, H, W)
        channel = torch.arange(channels)[:, None, None]
        y = torch.arange(masks.shape[1])[:, None].clamp(max=height - 1)
        x = torch.arange(masks.shape[2]).clamp(max=width - 1)
        return ImageMoments(self.mean[row, channel, y, x], self.deviation[row, channel, y, x])

    def to_bytes(self) -> bytes:
        """The safetensors file that `load_noise_prior` reads."""
        return save({"mean": self.mean.contiguous(), "deviation": self.deviation.contiguous()})

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of that file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def build_noise_prior(config: NoisePriorSection, generator: Generator, solver: AnySolverSection) -> NoisePrior:
    """Measures crops of the training set, cut as in training; a pure function of its files.

    Raises:
        InputError: if the dataset cannot be used, or the first step of the solver leaves no signal.
    """
    signal = generator.compute_first_signal(solver)
    if signal < _LEAST_SIGNAL:
        raise InputError(
            f"noise_prior: means nothing for this generator and solver, whose first step leaves no signal "
            f"(√ᾱ = {signal:.1g}); remove it"
        )
    info, geometry = generator.info, generator.geometry
    load_source_info(config.dataset, info)
    crops = CropDataset(
        load_micrographs(config.dataset, config.split, geometry.in_channels), geometry, 0, augment=False
    )
    return measure_noise_prior(crops, config.num_crops, info.num_classes, config.kind)


def measure_noise_prior(crops: CropDataset, num_crops: int, num_classes: int, kind: str) -> NoisePrior:
    """The moments of the first `num_crops` crops; kind is spatial, class or joint."""
    channels, edge = crops.geometry.in_channels, crops.geometry.image_size
    # Sums of whole numbers do not depend on their order, so that all machines get the same bits.
    count = np.zeros((num_classes + 1, 1, edge, edge), np.int64)
    total = np.zeros((num_classes + 1, channels, edge, edge), np.int64)
    squares = np.zeros_like(total)
    y, x = np.indices((edge, edge))
    for number in range(num_crops):
        image, mask = crops.cut(number)
        values = image.reshape(edge, edge, channels).astype(np.int64)
        rows = np.minimum(mask, num_classes)
        count[rows, 0, y, x] += 1
        total[rows, :, y, x] += values
        squares[rows, :, y, x] += values**2
    places, classes = (2, 3), (0,)
    if kind == "spatial":
        return _convert(*_compute_moments(*(part.sum(axis=classes, keepdims=True) for part in (count, total, squares))))
    overall = _compute_moments(*(part.sum(axis=(*classes, *places), keepdims=True) for part in (count, total, squares)))
    in_class = [part.sum(axis=places, keepdims=True) for part in (count, total, squares)]
    seen = in_class[0] > 1
    by_class = [np.where(seen, *pair) for pair in zip(_compute_moments(*in_class), overall, strict=True)]
    if kind == "class":
        return _convert(*by_class)
    often = count >= _LEAST_COUNT
    by_both = _compute_moments(count, total, squares)
    return _convert(*(np.where(often, *pair) for pair in zip(by_both, by_class, strict=True)))


def load_noise_prior(path: Path, sha256: str) -> NoisePrior:
    """Reads the moments of a run.

    Raises:
        InputError: if the file is missing or its hash is another.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the images of this run start from the moments in it")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise InputError(f"{path}: not the noise prior that the images started from (its SHA-256 differs)")
    values = load_file(path)
    return NoisePrior(values["mean"], values["deviation"])


def _compute_moments(
    count: NDArray[np.int64], total: NDArray[np.int64], squares: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation in grey levels, 0 where nothing was counted."""
    number = np.maximum(count, 1)
    mean = total / number
    return mean, np.sqrt(np.maximum(squares / number - mean**2, 0))


def _convert(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> NoisePrior:
    """From grey levels 0 … 255 to [-1, 1]."""
    return NoisePrior(
        torch.from_numpy((mean / 127.5 - 1).astype(np.float32)),
        torch.from_numpy((deviation / 127.5).astype(np.float32)),
    )

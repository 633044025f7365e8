"""Training of pixel classifiers on the features of frozen networks, or on those of classical filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steelgen.config.features import AnyFeaturesSection, MultiscaleFeaturesSection
from steelgen.config.segment import SegmentConfig
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.iou import compute_confusion, compute_mean_iou
from steelgen.evaluation.segmentation import augment_batch, compute_class_weights, shrink_geometry
from steelgen.evaluation.segmenter_training import Recipe, train_steps, train_to_best
from steelgen.generators.families import load_generator, open_network
from steelgen.generators.features import DiffusionFeatures
from steelgen.models.multiscale import MultiscaleFeatures
from steelgen.models.pixel_heads import FeatureMaps, FeatureSegmenter, PixelHeads, pad_to_multiple, sample_maps

_HELD_BYTES = 2**30
"""Largest size of the features of all training pixels."""
_VALIDATION_CROPS = 64
_SCALE_TOLERANCE = 0.01
_SAMPLE_STREAM, _BATCH_STREAM = 8, 9
"""Random streams of the pixels kept of each crop and of the batches, independent of the crops."""


@dataclass(frozen=True)
class PixelSample:
    """Features and classes of P pixels."""

    features: Tensor
    """(P, C) float32."""
    classes: NDArray[np.uint8]
    """(P,)."""


def build_features(section: AnyFeaturesSection, geometry: CropGeometry, generator: Path | None = None) -> FeatureMaps:
    """Builds the features of a config, in eval mode.

    Args:
        section: the kind of features.
        geometry: image_size, crop_size, and channels of the segmenter.
        generator: replaces the path of the generator, for its copy beside a trained segmenter.

    Raises:
        InputError: if the generator cannot be loaded or has no features, has other channels or another scale, or lacks
            a timestep or block.
    """
    if isinstance(section, MultiscaleFeaturesSection):
        return MultiscaleFeatures(section.sigma_max)
    path = generator or section.generator
    loaded = load_generator(path)
    source = open_network(loaded, f"features.generator: {path}")
    _check_geometry(path, geometry, loaded.geometry)
    latest, count = max(section.timesteps), len(source.blocks)
    if latest >= source.num_train_timesteps:
        raise InputError(f"features.timesteps: {latest}: {path} has {source.num_train_timesteps} timesteps, from 0")
    blocks = section.blocks or range(1, count + 1)
    if max(blocks) > count:
        raise InputError(f"features.blocks: {max(blocks)}: the decoder of {path} has {count} blocks, from 1")
    return DiffusionFeatures(source, section.timesteps, [block - 1 for block in sorted(blocks)])


def train_pixel_heads(
    train: Micrographs,
    val: Micrographs | None,
    geometry: CropGeometry,
    config: SegmentConfig,
    device: str = "cpu",
    report_progress: Callable[[int, int], None] | None = None,
) -> tuple[FeatureSegmenter, list[float]]:
    """Trains an ensemble of pixel classifiers on frozen features.

    Random crops pass the feature network one by one, and few pixels of each are kept, features in float32: in memory
    are the maps of one crop at their own resolutions, at most 1 GiB for all training pixels, and as much for those of
    `val`. Each classifier has its own initial weights and batches. The loss is cross-entropy; classes are balanced by
    the choice of the pixels.

    Args:
        train: micrographs with masks.
        val: micrographs of which random pixels select the best step; None keeps the last.
        geometry: geometry of the images to segment.
        config: `features` must be set; of `segmenter`, train_size, scale_range, and augmentation of gray levels apply.
        device: torch device.
        report_progress: called with (crops and steps done, their total).

    Returns:
        The segmenter in eval mode, and the mIoU of the pixels of `val` at each validation.

    Raises:
        InputError: see `build_features`; also if `train` has no labeled pixels.
    """
    section, settings, info = config.features, config.segmenter, train.info
    assert section is not None
    if not any((mask < info.num_classes).any() for mask in train.masks):
        raise InputError(f"{info.name}: has no masks to train a segmenter on")
    report, total = report_progress or (lambda *_: None), section.crops + section.steps
    features = build_features(section, geometry)
    assert isinstance(features, nn.Module)
    features.to(device).eval()
    smallest = min(min(mask.shape) for mask in train.masks)
    crops = BalancedCrops(
        train, shrink_geometry(geometry, settings, smallest), config.seed, settings.augmentation.rare_share
    )

    def cut(number: int) -> tuple[Tensor, Tensor]:
        item = crops[number]
        image, mask = item["image"][None], item["mask"][None]
        return augment_batch(image, mask, settings.augmentation, config.seed, number)

    weights = compute_class_weights(train.masks, info.num_classes).numpy()

    def cut_all() -> Iterable[tuple[Tensor, Tensor]]:
        for number in range(section.crops):
            yield cut(number)
            report(number + 1, total)

    known = sample_pixels(features, cut_all(), section.crops, section.pixels_per_crop, weights, config.seed, device)
    held_out = None
    if val is not None:
        edge = min(geometry.image_size, settings.train_size, min(min(mask.shape) for mask in val.masks))
        plain = CropDataset(val, shrink_geometry(geometry, settings, edge), config.seed, augment=False)
        shown = ((plain[n]["image"][None], plain[n]["mask"][None]) for n in range(_VALIDATION_CROPS))
        even = np.ones(info.num_classes)
        held_out = sample_pixels(features, shown, _VALIDATION_CROPS, section.pixels_per_crop, even, config.seed, device)

    def report_step(done: int, steps: int) -> None:
        report(section.crops + done, total)

    heads, course = fit_heads(known, held_out, info.num_classes, section, config, device, report_step)
    return FeatureSegmenter(features, heads).eval(), course


@torch.inference_mode()
def sample_pixels(
    features: FeatureMaps,
    crops: Iterable[tuple[Tensor, Tensor]],
    count: int,
    pixels_per_crop: int,
    class_weights: NDArray,
    seed: int,
    device: str = "cpu",
) -> PixelSample:
    """Samples pixels of crops, with features; fewer than `pixels_per_crop` if all would take more than 1 GiB.

    Args:
        crops: `count` images (1, in_channels, S, S) in [-1, 1] and masks (1, S, S); ignored pixels are not sampled.
        class_weights: (num_classes,) weights of the pixels by class.

    Raises:
        InputError: if no crop has a labeled pixel.
    """
    chances = np.zeros(256)
    chances[: len(class_weights)] = class_weights
    rows: Tensor | None = None
    classes: list[NDArray[np.uint8]] = []
    filled = 0
    for number, (image, mask) in enumerate(crops):
        padded = pad_to_multiple(image, features.stride)
        maps = features(padded.to(device))
        channels = sum(part.shape[1] for part in maps)
        wanted = min(pixels_per_crop, max(1, _HELD_BYTES // (4 * channels * count)))
        if rows is None:  # filled in place, since joining parts would hold them twice
            rows = torch.empty(count * wanted, channels)
        labels = mask.flatten().numpy().astype(np.uint8)
        weights = chances[labels]
        rng = np.random.default_rng((seed, number, _SAMPLE_STREAM))
        available = int((weights > 0).sum())
        if not available:
            continue
        chosen = rng.choice(len(labels), min(wanted, available), replace=False, p=weights / weights.sum())
        places = torch.from_numpy(chosen)
        width, size = mask.shape[2], (int(padded.shape[2]), int(padded.shape[3]))
        rows[filled : filled + len(chosen)] = sample_maps(maps, places // width, places % width, size)
        filled += len(chosen)
        classes.append(labels[chosen])
    if rows is None or not classes:
        raise InputError("the crops have no labeled pixels; label more of the micrographs, or raise features.crops")
    return PixelSample(rows[:filled], np.concatenate(classes))


def fit_heads(
    known: PixelSample,
    held_out: PixelSample | None,
    num_classes: int,
    section: AnyFeaturesSection,
    config: SegmentConfig,
    device: str,
    report_progress: Callable[[int, int], None],
) -> tuple[PixelHeads, list[float]]:
    """Fits an ensemble to the pixels of a sample; see `train_pixel_heads`."""
    count, (pixels, channels) = section.ensemble_size, known.features.shape
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        heads = PixelHeads(channels, num_classes, count)
    heads.mean.copy_(known.features.mean(dim=0))
    # Channels without variation stay 0.
    deviation = known.features.std(dim=0, correction=0)
    heads.deviation.copy_(torch.where(deviation > 1e-6 * heads.mean.abs() + 1e-12, deviation, 1.0))
    heads.to(device)
    classes = torch.from_numpy(known.classes.astype(np.int64))

    def sample_batch(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((config.seed, step, _BATCH_STREAM))
        chosen = torch.from_numpy(rng.integers(pixels, size=(count, section.batch_size)))
        return known.features[chosen], classes[chosen]

    def compute_loss(logits: Tensor, targets: Tensor) -> Tensor:
        # Each classifier has a mean loss of its own, so that their gradients do not depend on their number.
        return count * F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    steps = train_steps(
        heads, sample_batch, compute_loss, Recipe(section.steps, section.learning_rate, weight_decay=0.0)
    )
    if held_out is None:
        for done in steps:
            report_progress(done, section.steps)
        return heads.eval(), []
    shown = held_out

    def validate(network: nn.Module) -> float:
        network.eval()
        with torch.inference_mode():
            logits = network(shown.features.to(device).expand(count, -1, -1))
        predicted = logits.softmax(dim=2).mean(dim=0).argmax(dim=1).to(torch.uint8).cpu().numpy()
        mean_iou = compute_mean_iou(compute_confusion(shown.classes, predicted, num_classes))
        return float(mean_iou) if math.isfinite(mean_iou) else 0.0

    _, course = train_to_best(
        heads, steps, section.steps, validate, config.validate_every, config.patience, report_progress
    )
    return heads.eval(), [iou for _, iou in course]


def _check_geometry(path: Path, own: CropGeometry, theirs: CropGeometry) -> None:
    """Raises InputError if a generator has other channels, or its images another scale."""
    if own.in_channels != theirs.in_channels:
        raise InputError(
            f"features.generator: {path} sees images with {theirs.in_channels} channels; in_channels is "
            f"{own.in_channels}"
        )
    # Pixels of a micrograph per pixel of an image.
    ratio = (own.crop_size / own.image_size) / (theirs.crop_size / theirs.image_size)
    low, high = theirs.scale_range
    if not low * (1 - _SCALE_TOLERANCE) <= ratio <= high * (1 + _SCALE_TOLERANCE):
        raise InputError(
            f"features.generator: {path} sees {theirs.image_size} px from crops of {theirs.crop_size} px; set "
            f"image_size={theirs.image_size} and crop_size={theirs.crop_size}, or the same multiple of both, not "
            f"{own.image_size} and {own.crop_size}"
        )

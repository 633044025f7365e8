"""Segmenters trained on real micrographs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from steelgen.config.segmenter import AugmentationSection, SegmenterSection
from steelgen.data.balanced_crops import BalancedCrops, paste_rectangles, variation_rng, vary_images
from steelgen.data.crops import Micrographs, cut_crops
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.evaluation.iou import compute_confusion, compute_iou
from steelgen.evaluation.prediction import Averaging, predict_masks
from steelgen.evaluation.segmenter_training import Recipe, train_steps, train_to_best
from steelgen.files import new_file, save_tensors
from steelgen.models.architectures import build_architecture
from steelgen.models.segmenter import Enlarged, SegmenterUNet

WIDTH_TO_SEE = 3.0
"""Desired width of the thinnest class in the network's input, px."""
_HELD_OUT_CROPS = 64
"""Crops for measuring the segmenter's own IoU."""
_RECIPE = 2
"""Version of the training procedure, part of the cache key; covers changes that no setting reflects."""

Validation = tuple[Callable[[nn.Module], float], int, int | None]
"""Arguments of `train_to_best`: the network → mIoU, steps between validations, and patience."""


def load_or_train_segmenter(
    micrographs: Micrographs,
    geometry: CropGeometry,
    settings: SegmenterSection,
    cache_dir: Path,
    seed: int = 0,
    device: str = "cpu",
    report_progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Loads the segmenter from `cache_dir`, or trains and caches it; see `train_segmenter`.

    The cache key is a hash of micrographs, geometry, settings, and seed.
    """
    from safetensors.torch import load_file

    settings = resolve_settings(settings, micrographs, geometry)
    what = json.dumps([_RECIPE, geometry.__dict__, settings.model_dump(), seed, micrographs.info.num_classes])
    path = cache_dir / "segmenters" / f"{hash_arrays(*micrographs.images, *micrographs.masks, text=what)}.safetensors"
    if path.is_file():
        segmenter = build_segmenter(geometry.in_channels, micrographs.info.num_classes, settings)
        segmenter.load_state_dict(load_file(path))
        return segmenter.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    segmenter = train_segmenter(micrographs, geometry, settings, seed, device, report_progress)
    with new_file(path) as working:
        save_tensors(working, segmenter.state_dict())
    return segmenter


def train_segmenter(
    micrographs: Micrographs,
    geometry: CropGeometry,
    settings: SegmenterSection,
    seed: int = 0,
    device: str = "cpu",
    report_progress: Callable[[int, int], None] | None = None,
    validation: Validation | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> nn.Module:
    """Trains a segmenter on random, augmented crops; see `train_steps`.

    The loss is cross-entropy, with class weights proportional to 1/√frequency, plus soft Dice.

    Args:
        micrographs: the real training split.
        geometry: geometry of the images to segment.
        settings: network and training.
        seed: seed of weights, crops, and augmentation.
        device: torch device.
        report_progress: called with (steps done, total steps).
        validation: how to select the best step; None keeps the last.
        clock: time in seconds, for settings.max_minutes.

    Returns:
        The network in eval mode: (N, in_channels, H, W) in [-1, 1] → logits of the same size.

    Raises:
        InputError: if the micrographs have no masks, or the architecture or its weights are missing.
    """
    num_classes, ignore_index = micrographs.info.num_classes, micrographs.info.ignore_index
    if not num_classes:
        raise InputError(f"{micrographs.info.name}: has no masks to train a segmenter on")
    augmentation = settings.augmentation
    smallest = min(min(mask.shape) for mask in micrographs.masks)
    crops = BalancedCrops(micrographs, shrink_geometry(geometry, settings, smallest), seed, augmentation.rare_share)
    class_weights = compute_class_weights(micrographs.masks, num_classes).to(device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        segmenter = build_segmenter(
            geometry.in_channels, num_classes, resolve_settings(settings, micrographs, geometry)
        )
        segmenter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def sample_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            batch = [crops[step * settings.batch_size + offset] for offset in range(settings.batch_size)]
            images, masks = (torch.stack([item[name] for item in batch]) for name in ("image", "mask"))
            return augment_batch(images, masks, augmentation, seed, step)

        loss = partial(compute_segmentation_loss, class_weights=class_weights, ignore_index=ignore_index)
        recipe = Recipe(
            settings.steps,
            settings.learning_rate,
            encoder_factor=settings.encoder_factor,
            frozen_share=settings.frozen_share,
            max_seconds=settings.max_minutes and 60 * settings.max_minutes,
            clock=clock,
        )
        steps, report = train_steps(segmenter, sample_batch, loss, recipe), report_progress or (lambda *_: None)
        if validation is None:
            for done in steps:
                report(done, settings.steps)
        else:
            train_to_best(segmenter, steps, settings.steps, *validation, report)
    return segmenter.eval()


def augment_batch(
    images: torch.Tensor, masks: torch.Tensor, section: AugmentationSection, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augments gray levels and applies CutMix; deterministic in seed and step.

    Args:
        images: (N, C, S, S) in [-1, 1].
        masks: (N, S, S) int64.
        section: strength of the augmentation.
        seed, step: source of randomness.
    """
    rng = variation_rng(seed, step)
    levels = {name: getattr(section, name) for name in ("brightness", "contrast", "gamma", "noise", "blur")}
    varied, labels = paste_rectangles(vary_images(images, rng, **levels), masks, section.cutmix_share, rng)
    return varied.to(memory_format=torch.channels_last), labels


def shrink_geometry(geometry: CropGeometry, settings: SegmenterSection, smallest: int) -> CropGeometry:
    """Limits crops to `train_size` px at the same scale, and applies the segmenter's scale_range.

    Args:
        geometry: geometry of the images.
        settings: settings of the segmenter.
        smallest: edge of the smallest micrograph, px; another limit of the crop.
    """
    size = min(settings.train_size, smallest)
    (low, high), (less, more) = geometry.scale_range, settings.scale_range
    varied = replace(geometry, scale_range=(low * less, high * more))
    if geometry.image_size <= size:
        return varied
    return replace(varied, image_size=size, crop_size=round(geometry.crop_size * size / geometry.image_size))


def build_segmenter(in_channels: int, num_classes: int, settings: SegmenterSection) -> nn.Module:
    """Builds the network of resolved settings (see `resolve_settings`), untrained except for its encoder."""
    network: nn.Module
    if settings.architecture == "unet":
        network = SegmenterUNet(in_channels, num_classes, settings.base_channels, settings.num_levels)
    else:
        network = build_architecture(
            settings.architecture, in_channels, num_classes, settings.base_channels, settings.weights
        )
    return network if settings.enlargement in (None, 1) else Enlarged(network, settings.enlargement)


def resolve_settings(settings: SegmenterSection, micrographs: Micrographs, geometry: CropGeometry) -> SegmenterSection:
    """Replaces an enlargement of None by the result of `choose_enlargement`."""
    if settings.enlargement is not None:
        return settings
    return settings.model_copy(update={"enlargement": choose_enlargement(micrographs, geometry)})


def choose_enlargement(micrographs: Micrographs, geometry: CropGeometry) -> float:
    """Chooses the upsampling factor of images, 1 to 2, that makes the thinnest class `WIDTH_TO_SEE` px wide.

    Most encoders halve the resolution before their first features, which loses thin classes.
    """
    widths = compute_widths(micrographs.masks, micrographs.info.num_classes) * geometry.image_size / geometry.crop_size
    thinnest = np.nanmin(widths) if np.isfinite(widths).any() else WIDTH_TO_SEE
    return float(np.clip(np.ceil(4 * WIDTH_TO_SEE / thinnest) / 4, 1, 2))


def compute_widths(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> NDArray[np.float64]:
    """Computes the mean width of each class, (C,) in px: twice the area over the boundary length; NaN without boundary.

    For long films this is their thickness. The boundary length is π/4 times the number of unequal neighbor pairs, by
    the Cauchy-Crofton formula for isotropic boundaries.
    """
    areas, parted = np.zeros(num_classes), np.zeros(num_classes)
    for mask in masks:
        areas += np.bincount(mask.ravel(), minlength=256)[:num_classes]
        for first, second in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            borders = first != second
            for side in (first, second):
                parted += np.bincount(side[borders], minlength=256)[:num_classes]
    return np.divide(2 * areas, np.pi / 4 * parted, out=np.full(num_classes, np.nan), where=parted > 0)


def measure_class_iou(
    segmenter: nn.Module, micrographs: Micrographs, geometry: CropGeometry, averaging: Averaging, seed: int = 0
) -> NDArray[np.float64]:
    """Measures the IoU of each class, (C,), on crops of held-out micrographs; NaN for absent classes."""
    images, masks = cut_crops(micrographs, geometry, _HELD_OUT_CROPS, seed)
    info = micrographs.info
    return compute_iou(
        compute_confusion(masks, predict_masks(segmenter, images, averaging), info.num_classes, info.ignore_index)
    )


def compute_class_weights(masks: list[NDArray[np.uint8]], num_classes: int) -> torch.Tensor:
    """Computes class weights (C,) ∝ 1/√frequency, with mean 1 over the classes present; 0 for absent classes."""
    counts = sum(np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks)
    present = np.asarray(counts) > 0
    weights = np.where(present, 1 / np.sqrt(np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights / weights[present].mean()).float()


def compute_segmentation_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    class_weights: torch.Tensor,
    ignore_index: int,
    kind: Literal["ce", "dice", "ce+dice"] = "ce+dice",
) -> torch.Tensor:
    """Computes weighted cross-entropy, Dice loss of the classes present (Milletari 2016, arXiv 1606.04797), or the sum.

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64 class indices or ignore_index.
        class_weights: (C,), for the cross-entropy.
        ignore_index: mask value of ignored pixels.
        kind: the loss.

    Returns:
        Scalar; 0 if all pixels are ignored.
    """
    counted = masks != ignore_index
    if not counted.any():
        return logits.sum() * 0
    cross_entropy = F.cross_entropy(logits, masks, class_weights, ignore_index=ignore_index)
    if kind == "ce":
        return cross_entropy
    probabilities = logits.softmax(dim=1) * counted[:, None]
    one_hot = F.one_hot(masks * counted, logits.shape[1]).movedim(-1, 1) * counted[:, None]
    overlap = (probabilities * one_hot).sum(dim=(0, 2, 3))
    size = (probabilities + one_hot).sum(dim=(0, 2, 3))
    present = one_hot.sum(dim=(0, 2, 3)) > 0
    dice = 1 - (2 * overlap[present] / size[present]).mean()
    return dice if kind == "dice" else cross_entropy + dice

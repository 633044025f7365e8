"""The judge of masks: a segmenter trained on real micrographs, kept so that it is trained once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelgen.config.evaluate import SegmenterSection
from steelgen.data.crops import CropDataset, Micrographs, image_to_tensor
from steelgen.data.placement import CropGeometry
from steelgen.devices import autocast
from steelgen.errors import InputError
from steelgen.evaluation.features import hash_arrays
from steelgen.files import new_file, save_tensors
from steelgen.models.segmenter import SegmenterUNet

_PIXELS_ON_CPU, _PIXELS_ON_GPU = 2**16, 2**23
"""Of a forward pass: what a processor's cache holds is done twice as fast."""


def load_or_train_segmenter(
    micrographs: Micrographs,
    geometry: CropGeometry,
    settings: SegmenterSection,
    cache_dir: Path,
    seed: int = 0,
    device: str = "cpu",
    report_progress: Callable[[int, int], None] | None = None,
) -> SegmenterUNet:
    """As `train_segmenter`, kept in `cache_dir` under a hash of micrographs, geometry and settings."""
    from safetensors.torch import load_file

    what = json.dumps([geometry.__dict__, settings.model_dump(), seed, micrographs.info.num_classes])
    path = cache_dir / "segmenters" / f"{hash_arrays(*micrographs.images, *micrographs.masks, text=what)}.safetensors"
    if path.is_file():
        segmenter = build_segmenter(geometry, micrographs.info.num_classes, settings)
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
) -> SegmenterUNet:
    """Trains a U-Net on random crops, with flips, rotations and changes of gray level.

    See `run_one_cycle`; the loss is cross-entropy, weighted by the inverse root of the class
    frequencies, plus the soft Dice loss.

    Args:
        micrographs: the real training split.
        geometry: of the images that it will judge.
        settings: size and training of the U-Net.
        seed: of the weights, the crops and the gray levels.
        device: torch device.
        report_progress: called with (steps done, steps in all).

    Returns:
        The network in eval mode.

    Raises:
        InputError: if the micrographs have no masks.
    """
    num_classes, ignore_index = micrographs.info.num_classes, micrographs.info.ignore_index
    if not num_classes:
        raise InputError(f"{micrographs.info.name}: has no masks to learn segmentation from")
    crops = CropDataset(micrographs, shrink_geometry(geometry, settings.train_size), seed, augment=True)
    class_weights = compute_class_weights(micrographs.masks, num_classes).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = build_segmenter(geometry, num_classes, settings)
    segmenter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed)

    def sample_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = [crops[step * settings.batch_size + offset] for offset in range(settings.batch_size)]
        images = vary_gray_levels(torch.stack([item["image"] for item in batch]), generator)
        return images.to(memory_format=torch.channels_last), torch.stack([item["mask"] for item in batch])

    loss = partial(compute_segmentation_loss, class_weights=class_weights, ignore_index=ignore_index)
    for done in run_one_cycle(segmenter, sample_batch, loss, settings.steps, settings.learning_rate):
        if report_progress:
            report_progress(done, settings.steps)
    return segmenter.eval()


def run_one_cycle(
    network: torch.nn.Module,
    sample_batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    compute_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    mixed_precision: str = "no",
) -> Iterator[int]:
    """Trains a segmenter in place, by AdamW on one cycle of the learning rate; whoever iterates may look at it.

    Args:
        sample_batch: step, from 0 → images (N, C, S, S) and masks (N, S, S).
        compute_loss: of float32 logits (N, num_classes, S, S) and masks.
        steps, learning_rate: how many, and the peak of the cycle.
        mixed_precision: no, bf16 or fp16.

    Yields:
        Steps done, after each.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    # The schedule divides by its warm-up less one step: by zero, for exactly 0.2 of five steps.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.2 + 1e-9)
    for step in range(steps):
        network.train()
        images, masks = sample_batch(step)
        with autocast(mixed_precision, device):
            logits = network(images.to(device))
        loss = compute_loss(logits.float(), masks.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step + 1


def shrink_geometry(geometry: CropGeometry, image_size: int) -> CropGeometry:
    """Crops of at most `image_size` px at the same magnification: the network is convolutional, and small is fast."""
    if geometry.image_size <= image_size:
        return geometry
    crop_size = round(geometry.crop_size * image_size / geometry.image_size)
    return replace(geometry, image_size=image_size, crop_size=crop_size)


def build_segmenter(geometry: CropGeometry, num_classes: int, settings: SegmenterSection) -> SegmenterUNet:
    """The untrained network of those settings."""
    return SegmenterUNet(geometry.in_channels, num_classes, settings.base_channels, settings.num_levels)


@torch.inference_mode()
def predict_masks(segmenter: torch.nn.Module, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The most likely class of every pixel.

    Args:
        segmenter: (N, C, S, S) in [-1, 1] → logits (N, num_classes, S, S).
        images: (N, S, S) or (N, S, S, 3) uint8.

    Returns:
        (N, S, S) uint8 class indices.
    """
    device = next(segmenter.parameters()).device
    pixels = _PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_GPU
    batch_size = max(1, pixels // (images.shape[1] * images.shape[2]))
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.stack([image_to_tensor(image) for image in images[start : start + batch_size]])
        batch = batch.to(device, memory_format=torch.channels_last)
        parts.append(segmenter(batch).argmax(dim=1).to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


def compute_class_weights(masks: list[NDArray[np.uint8]], num_classes: int) -> torch.Tensor:
    """(C,) weights ∝ 1/√frequency with mean 1 over the classes that occur; 0 for a class that does not."""
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
    """Weighted cross-entropy, the Dice loss of the classes present (Milletari 2016, arXiv 1606.04797), or their sum.

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64 class indices or ignore_index.
        class_weights: (C,), of the cross-entropy.
        ignore_index: pixels of this value count nowhere.
        kind: which of the two.

    Returns:
        Scalar; 0 for a batch in which every pixel is ignored.
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


def vary_gray_levels(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes contrast (×0.7 to ×1.3), brightness (±0.2) and noise (σ up to 0.08) of each image at random.

    Args:
        images: (N, C, H, W) in [-1, 1].

    Returns:
        The same shape, clipped to [-1, 1].
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    noise = torch.randn(images.shape, generator=generator)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    varied = (images - mean) * uniform(0.7, 1.3) + mean + uniform(-0.2, 0.2) + noise * uniform(0.0, 0.08)
    return varied.clamp(-1, 1)

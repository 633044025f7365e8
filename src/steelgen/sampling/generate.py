"""Inference: batches of images from masks and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelgen.config.sample import SampleConfig
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.data.crops import image_to_tensor, tensor_to_image
from steelgen.devices import autocast, describe_memory, is_out_of_memory, pick_device
from steelgen.errors import InputError
from steelgen.generators import Generator, Latents, StartImages, draw_for_masks, join_networks, uses_images
from steelgen.generators.families import load_generator
from steelgen.sampling.masks import SourceMask

_WITH_IMAGES = ("images", "split", "balanced")
"""Kinds of mask sources that have images."""
Start = tuple[Sequence[NDArray[np.uint8]], float]
"""N images of the size of their masks, and the strength; see `StartImages`."""


def prepare_generator(path: Path, channels_last: bool = True, compiled: bool = False) -> Generator:
    """Loads a generator for inference, onto the GPU if there is one.

    Raises:
        InputError: if there is no generator, or it cannot be loaded.
    """
    generator = load_generator(path)
    for network in generator.networks.values():
        network.to(pick_device())
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            network.compile(dynamic=False)  # only the last batch of a run has another shape
    return generator


def check_taken(config: SampleConfig, generator: Generator) -> None:
    """Raises InputError if the config sets a field that the generator does not use.

    Resolved configs have all defaults in them, which set nothing.
    """
    for section, name in (("solver", "solver"), ("start_images", "start"), ("truncation", "truncation")):
        default = SampleConfig.model_fields[section].get_default(call_default_factory=True)
        if getattr(config, section) != default and name not in generator.takes:
            raise InputError(f"{section}: not applicable to generators of kind {generator.kind}")
    source = config.mask_source.kind
    if source == "images" and not uses_images(generator):
        raise InputError(f"mask_source.kind 'images': not applicable to generators of kind {generator.kind}")
    if source not in _WITH_IMAGES and "images" in generator.needs:
        raise InputError(
            f"mask_source.kind {source!r}: has no images, which generators of kind {generator.kind} need; use "
            f"{' or '.join(_WITH_IMAGES)}"
        )
    follows = uses_images(generator) or "masks" in generator.needs | generator.takes
    # Without classes the mask source refuses, whatever the start images are.
    if source != "none" and config.start_images is None and generator.info.num_classes and not follows:
        raise InputError(
            f"mask_source.kind {source!r}: this generator of kind {generator.kind} does not follow masks; use kind "
            "'none', or start_images to carry the labels of micrographs along"
        )


def take_start(config: SampleConfig, batch: Sequence[SourceMask]) -> Start | None:
    """Returns the start images of a batch; None if the config starts from noise."""
    if config.start_images is None:
        return None
    images = [source_mask.image for source_mask in batch if source_mask.image is not None]
    assert len(images) == len(batch), "the config allows start_images only if each mask has a micrograph"
    return images, config.start_images.strength


def take_images(generator: Generator, batch: Sequence[SourceMask]) -> list[NDArray[np.uint8]] | None:
    """Returns the images of a batch for a generator that uses images; None for others or without images."""
    images = [source_mask.image for source_mask in batch if source_mask.image is not None]
    return images if uses_images(generator) and len(images) == len(batch) else None


def generate_images(
    generator: Generator,
    masks: Sequence[NDArray[np.uint8]],
    seeds: Sequence[int],
    solver: AnySolverSection,
    mixed_precision: str = "no",
    start: Start | None = None,
    noise: Tensor | None = None,
    latents: Latents | None = None,
    truncation: float | None = None,
    images: Sequence[NDArray[np.uint8]] | None = None,
) -> list[NDArray[np.uint8]]:
    """Generates one image per mask.

    Args:
        masks: N masks (H, W) of class indices, all of the same size.
        mixed_precision: no, bf16 or fp16.
        noise: standard normal noise to use in place of the noise of the seeds; see `DrawRequest`.
        latents: N points in latent space to use in place of the latents of the seeds.
        truncation: see `DrawRequest.truncation`.
        images: N images (H, W) or (H, W, 3), see `DrawRequest.images`.

    Returns:
        N images (H, W) or (H, W, 3) uint8.

    Raises:
        InputError: if the batch does not fit into memory, an image has non-finite pixels, or the generator needs
            images and there are none.
    """
    if images is None and "images" in generator.needs:
        raise InputError(
            f"generators of kind {generator.kind} need images; use `steelgen sample` with a mask source "
            f"of kind {' or '.join(_WITH_IMAGES)}"
        )
    device = next(join_networks(generator.networks).parameters()).device
    batch = torch.from_numpy(np.stack(masks).astype(np.int64))
    start_images = StartImages(_stack(start[0]), start[1]) if start else None
    shown = None if images is None else _stack(images)
    try:
        with autocast(mixed_precision, device):
            drawn = draw_for_masks(generator, batch, seeds, solver, start_images, noise, latents, truncation, shown)
            drawn = drawn.cpu()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_describe_memory_error(batch, solver, mixed_precision)) from error
    for seed, image in zip(seeds, drawn, strict=True):
        if not image.isfinite().all():
            cause = "the weights may come from a training that diverged"
            if mixed_precision == "fp16":
                cause = "fp16 overflows above 65504, try mixed_precision=bf16 or no"
            raise InputError(f"{generator.info.name}: the image of seed {seed} has non-finite pixels; {cause}")
    return [tensor_to_image(image) for image in drawn]


def _stack(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.stack([image_to_tensor(image) for image in images])


def _describe_memory_error(masks: Tensor, solver: AnySolverSection, mixed_precision: str) -> str:
    count, height, width = masks.shape
    advice = [f"batch_size={count // 2}"] if count > 1 else []
    if isinstance(solver, SolverSection) and solver.mask_cache_gib > 0:
        advice.append("solver.mask_cache_gib=0")
    if mixed_precision == "no":
        advice.append("mixed_precision=bf16")
    return (
        f"out of memory: a batch of {count} images of {width}x{height} px needs more than {describe_memory()}; try "
        f"{', '.join(advice) or 'smaller masks'}. Finished images are kept; rerun the command to resume"
    )

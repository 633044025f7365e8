"""Inference: batches of images from masks and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelgen.config.mask_sources import NoMasks, has_masks
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.data.crops import image_to_tensor, tensor_to_image
from steelgen.devices import autocast, describe_memory, is_out_of_memory, pick_device
from steelgen.errors import InputError
from steelgen.generators import DrawRequest, Generator, Latents, StartImages, join_networks
from steelgen.generators.cascade import build_cascade
from steelgen.generators.drawing import check_coarse_solver, draw, uses_images
from steelgen.generators.families import load_generator
from steelgen.sampling.inpainting import InpaintRegion, collect_fractions, mark_known
from steelgen.sampling.masks import SourceMask

_WITH_IMAGES = ("images", "split", "balanced")
"""Kinds of mask sources that have images."""
Start = tuple[Sequence[NDArray[np.uint8]], float]
"""N images of the size of their masks, and the strength; see `StartImages`."""


@dataclass(frozen=True)
class SamplingBatch:
    """Inputs of `generate_pairs` for N images of one size, as they are on disk; see `DrawRequest` for the tensors."""

    masks: Sequence[NDArray[np.uint8]]
    """N masks (H, W) of class indices."""
    seeds: Sequence[int]
    solver: AnySolverSection
    images: Sequence[NDArray[np.uint8]] | None = None
    """N images (H, W) or (H, W, 3) for generators that use images."""
    start: Start | None = None
    regions: Sequence[InpaintRegion] | None = None
    """The regions of `masks` and `images` to inpaint; None generates all of them."""
    conditions: Tensor | None = None
    truncation: float | None = None
    noise: Tensor | None = None
    latents: Latents | None = None

    def to_request(self, generator: Generator) -> DrawRequest:
        """Converts masks and images to tensors."""
        masks = torch.from_numpy(np.stack(self.masks).astype(np.int64))
        known = fractions = None
        if self.regions is not None:
            known = mark_known(self.regions, (masks.shape[1], masks.shape[2]))
            fractions = collect_fractions(self.regions, generator.info)
        return DrawRequest(
            self.seeds,
            masks,
            None if self.images is None else _stack(self.images),
            self.solver,
            StartImages(_stack(self.start[0]), self.start[1]) if self.start else None,
            self.noise,
            self.latents,
            self.truncation,
            fractions,
            known,
            conditions=self.conditions,
        )


class Pair(NamedTuple):
    """An image, and its mask from generators that make masks."""

    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3)."""
    mask: NDArray[np.uint8] | None
    """(H, W) class indices."""


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


def prepare_stages(config: SampleConfig, compiled: bool = False) -> Generator:
    """Loads the generator of a config for inference, or its stages as one; see `prepare_generator`.

    Raises:
        InputError: also if the stages do not fit each other.
    """
    paths = list(config.generators.values())
    generators = [prepare_generator(path, config.channels_last, compiled) for path in paths]
    if not config.stages:
        return generators[0]
    return build_cascade(generators, [stage.solver or SolverSection() for stage in config.stages], paths)


def check_taken(config: SampleConfig, generator: Generator) -> None:
    """Raises InputError if the config sets a field that the generator does not use.

    Resolved configs have all defaults in them, which set nothing.
    """
    sections = {"solver": "solver", "start_images": "start", "truncation": "truncation", "inpaint": "known"}
    for section, name in sections.items():
        default = SampleConfig.model_fields[section].get_default(call_default_factory=True)
        if getattr(config, section) != default and name not in generator.takes:
            raise InputError(f"{section}: not applicable to generators of kind {generator.kind}")
    if "solver" in generator.takes:
        check_coarse_solver(generator, config.solver)
    if "images" not in generator.makes:
        path = next(iter(config.generators.values()))
        raise InputError(f"{path}: makes masks alone; use it as generator of mask_source.kind 'learned'")
    source, accepted = config.mask_source.kind, generator.needs | generator.takes
    if isinstance(config.mask_source, NoMasks) and config.mask_source.size and "masks" not in accepted:
        raise InputError(f"mask_source.size: not applicable to this generator of kind {generator.kind}")
    if not writes_labels(config, generator) and (config.filter or config.coco):
        without = "is" if source == "none" else "has no masks:"
        name = "filter" if config.filter else "coco"
        raise InputError(f"{name} needs masks, but mask_source.kind {without} {source!r}")
    if config.inpaint:
        if config.inpaint.phase_fraction and "fractions" not in generator.takes:
            raise InputError(f"inpaint.phase_fraction: not applicable to this generator of kind {generator.kind}")
        region = InpaintRegion(box=(0, 0, 1, 1), phase_fraction=config.inpaint.phase_fraction)
        collect_fractions([region], generator.info)  # raises before anything is written
    if config.filter and config.labels:
        raise InputError("filter: not applicable to predicted labels")
    if source == "images" and not uses_images(generator):
        raise InputError(f"mask_source.kind 'images': not applicable to generators of kind {generator.kind}")
    if source not in _WITH_IMAGES and "images" in generator.needs:
        raise InputError(
            f"mask_source.kind {source!r}: has no images, which generators of kind {generator.kind} need; use "
            f"{' or '.join(_WITH_IMAGES)}"
        )
    uses_masks = "masks" in accepted or uses_images(generator)
    # Without classes the mask source refuses, whatever the start images are.
    if source != "none" and config.start_images is None and generator.info.num_classes and not uses_masks:
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
    """Returns the images of a batch for a generator that uses images; None for others or without images.

    A generator that takes either masks or images is given the masks, if they have classes.
    """
    images = [source_mask.image for source_mask in batch if source_mask.image is not None]
    if not uses_images(generator) or len(images) < len(batch):
        return None
    labeled = any((source_mask.mask < generator.info.num_classes).any() for source_mask in batch)
    return None if labeled and "masks" in generator.takes else images


def makes_mask(generator: Generator, mask: NDArray[np.uint8]) -> bool:
    """Whether a generator makes the mask of an image for which `mask` is given: one in which all pixels are ignored."""
    return "masks" in generator.makes and not (mask < generator.info.num_classes).any()


def writes_labels(config: SampleConfig, generator: Generator) -> bool:
    """Whether sampled images have masks: those of the mask source, of the generator, or predicted ones."""
    return has_masks(config.mask_source) or config.labels is not None or "masks" in generator.makes


def generate_images(generator: Generator, batch: SamplingBatch, mixed_precision: str = "no") -> list[NDArray[np.uint8]]:
    """Generates one image per mask; see `generate_pairs`. Returns N images (H, W) or (H, W, 3) uint8."""
    return [pair.image for pair in generate_pairs(generator, batch, mixed_precision)]


def generate_pairs(generator: Generator, batch: SamplingBatch, mixed_precision: str = "no") -> list[Pair]:
    """Generates one image per mask, and its mask if the generator makes masks.

    Args:
        mixed_precision: no, bf16 or fp16.

    Returns:
        N pairs.

    Raises:
        InputError: if the batch does not fit into memory, an image has non-finite pixels, or the generator needs
            images and there are none.
    """
    if batch.images is None and "images" in generator.needs:
        raise InputError(
            f"generators of kind {generator.kind} need images; use `steelgen sample` with a mask source "
            f"of kind {' or '.join(_WITH_IMAGES)}"
        )
    device = next(join_networks(generator.networks).parameters()).device
    request = batch.to_request(generator)
    try:
        with autocast(mixed_precision, device):
            drawn = draw(generator, request)
            assert drawn.images is not None, f"{generator.kind} makes no images"
            made = drawn.images.cpu()
            labels = None if drawn.masks is None else drawn.masks.cpu().numpy().astype(np.uint8)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_describe_memory_error(batch, mixed_precision)) from error
    for seed, image in zip(batch.seeds, made, strict=True):
        if not image.isfinite().all():
            cause = "the weights may come from a training that diverged"
            if mixed_precision == "fp16":
                cause = "fp16 overflows above 65504, try mixed_precision=bf16 or no"
            raise InputError(f"{generator.info.name}: the image of seed {seed} has non-finite pixels; {cause}")
    return [Pair(tensor_to_image(image), None if labels is None else labels[row]) for row, image in enumerate(made)]


def _stack(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.stack([image_to_tensor(image) for image in images])


def _describe_memory_error(batch: SamplingBatch, mixed_precision: str) -> str:
    count, (height, width) = len(batch.masks), batch.masks[0].shape
    advice = [f"batch_size={count // 2}"] if count > 1 else []
    if isinstance(batch.solver, SolverSection) and batch.solver.mask_cache_gib > 0:
        advice.append("solver.mask_cache_gib=0")
    if mixed_precision == "no":
        advice.append("mixed_precision=bf16")
    return (
        f"out of memory: a batch of {count} images of {width}x{height} px needs more than {describe_memory()}; try "
        f"{', '.join(advice) or 'smaller masks'}. Finished images are kept; rerun the command to resume"
    )

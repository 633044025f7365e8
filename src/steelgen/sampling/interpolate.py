"""Interpolation between seeds or between real micrographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from steelgen.config.sample import SampleConfig
from steelgen.data.crops import image_to_tensor
from steelgen.data.images import load_image, to_channels
from steelgen.data.placement import CropGeometry, resize_image
from steelgen.devices import randn_by_seed, resolve_precision
from steelgen.errors import InputError
from steelgen.files import new_file
from steelgen.generators import Generator, LatentGenerator, Latents, LatentSpace
from steelgen.generators.drawing import find_factor
from steelgen.sampling.generate import (
    SamplingBatch,
    check_taken,
    generate_images,
    prepare_stages,
    take_images,
    take_start,
)
from steelgen.sampling.mask_sources import build_mask_source, replace_images
from steelgen.sampling.masks import SourceMask

_FRAME_MS = 120
_FRAMES_AT_ONCE = 4
_GAP = 2
"""White px between the frames of a strip or grid."""


@dataclass(frozen=True)
class Walk:
    """A path through two or more seeds or real micrographs."""

    seeds: Sequence[int] = (0, 1)
    num_frames: int = 8
    """Frames from one point to the next, both included; at least 2."""
    space: str | None = None
    """Latent space, "z" or "w"; None for the generator's last."""
    images: Sequence[Path] = ()
    """Real micrographs instead of seeds; the center crop of each is projected to w."""
    projection_steps: int = 300


def interpolate(
    config: SampleConfig,
    walk: Walk,
    mask_index: int,
    path: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Generates frames between points, for one mask or without masks.

    Args:
        config: generator, mask source, and sampling settings; its output folder is not used.
        walk: the path.
        mask_index: index of the mask in the mask source.
        path: .png for one row of frames per segment of the walk; .gif for an animation there and back.
        report: receives (steps done, total steps) of the projection, then (frames done, total frames).

    Returns:
        Root mean square error of each projected image, in gray levels of 0 to 255.

    Raises:
        InputError: if the path has another suffix or exists, there are fewer than 2 frames or points, or a setting or
            latent space is not applicable to the generator.
    """
    _check_walk(walk, path)
    generator = prepare_stages(config)
    check_taken(config, generator)
    info, geometry, factor = generator.info, generator.geometry, find_factor(generator)
    masks = build_mask_source(config.mask_source, info, geometry, config.seed, factor)
    source = replace_images(masks, config, generator.info, generator.geometry).draw(mask_index)
    errors: list[float] = []
    points: Latents | Tensor
    if isinstance(generator, LatentSpace):
        points, errors = _find_points(generator, generator.geometry, walk, source.mask.shape, report)
    elif walk.images or walk.space:
        name = next(iter(config.generators.values()))
        raise InputError(f"{name}: generators of kind {generator.kind} have no latent space z or w")
    elif isinstance(generator, LatentGenerator):
        points = randn_by_seed((generator.latent_dim,), walk.seeds)
    elif "noise" in generator.takes:
        points = randn_by_seed((generator.geometry.in_channels, *source.mask.shape), walk.seeds)
    else:
        raise InputError(f"interpolate: not applicable to generators of kind {generator.kind}")
    frames: list[NDArray[np.uint8]] = []
    shares = [float(share) for share in np.linspace(0, 1, walk.num_frames)]
    segments = list(pairwise(range(len(walk.images or walk.seeds))))
    total = len(segments) * len(shares)
    for first, last in segments:
        for start in range(0, len(shares), min(config.batch_size, _FRAMES_AT_ONCE)):
            report(len(frames), total)
            part = shares[start : start + min(config.batch_size, _FRAMES_AT_ONCE)]
            frames += _generate_frames(generator, config, source, walk, points, (first, last), part)
    report(total, total)
    _save(path, [frames[start : start + len(shares)] for start in range(0, total, len(shares))])
    return errors


def _check_walk(walk: Walk, path: Path) -> None:
    if path.suffix.lower() not in (".png", ".gif"):
        raise InputError(f"{path}: must end in .png (a strip) or .gif (an animation)")
    if path.exists():
        raise InputError(f"{path}: already exists; use another file or remove it")
    if walk.num_frames < 2:
        raise InputError(f"frames {walk.num_frames}: must be at least 2")
    if len(walk.images or walk.seeds) < 2:
        raise InputError("interpolate: needs at least two seeds or two images")
    if walk.images and walk.space == "z":
        raise InputError("space 'z': images can only be projected to 'w'")


def _find_points(
    generator: LatentSpace,
    geometry: CropGeometry,
    walk: Walk,
    size: tuple[int, ...],
    report: Callable[[int, int], None],
) -> tuple[Latents, list[float]]:
    if walk.images:
        images = torch.stack([_load_middle(path, geometry) for path in walk.images])
        latents, errors = generator.project(images, walk.projection_steps, report)
        return latents, [float(error) * 127.5 for error in errors]
    space = walk.space or generator.spaces[-1]
    if space not in generator.spaces:
        raise InputError(f"space {space!r}: not a latent space of this generator; known: {', '.join(generator.spaces)}")
    return generator.find_latents(walk.seeds, space, (size[0], size[1])), []


def _load_middle(path: Path, geometry: CropGeometry) -> Tensor:
    """Loads the center crop of a micrograph at the scale of the training crops, (C, S, S) in [-1, 1]."""
    image = to_channels(load_image(path), geometry.in_channels)
    edge = min(geometry.crop_size, *image.shape[:2])
    top, left = ((length - edge) // 2 for length in image.shape[:2])
    middle = np.ascontiguousarray(image[top : top + edge, left : left + edge])
    return image_to_tensor(resize_image(middle, geometry.image_size, geometry.image_size))


def _generate_frames(
    generator: Generator,
    config: SampleConfig,
    source: SourceMask,
    walk: Walk,
    points: Latents | Tensor,
    ends: tuple[int, int],
    shares: list[float],
) -> list[NDArray[np.uint8]]:
    first, last = ends
    noise, latents = None, None
    if isinstance(points, Latents):
        mix_styles = lerp if points.space == "w" else slerp
        styles = [mix_styles(points.styles[first], points.styles[last], share) for share in shares]
        fields = [slerp(points.noise[first], points.noise[last], share) for share in shares]
        latents = Latents(points.space, torch.stack(styles), torch.stack(fields))
    else:
        # With few latents the norm is not concentrated, and slerp between opposite ends would take a wide arc.
        mix = torch.lerp if isinstance(generator, LatentGenerator) else slerp
        noise = torch.stack([mix(points[first], points[last], share) for share in shares])
    sources = [source] * len(shares)
    batch = SamplingBatch(
        [each.mask for each in sources],
        [0 if walk.images else walk.seeds[first]] * len(shares),
        config.solver,
        images=take_images(generator, sources),
        start=take_start(config, sources),
        truncation=config.truncation,
        noise=noise,
        latents=latents,
    )
    return generate_images(generator, batch, resolve_precision(config.mixed_precision))


def _save(path: Path, rows: list[list[NDArray[np.uint8]]]) -> None:
    with new_file(path) as working:
        if path.suffix.lower() == ".png":
            Image.fromarray(_arrange(rows)).save(working)
            return
        # The end of a segment is the start of the next.
        frames = [*rows[0], *(frame for row in rows[1:] for frame in row[1:])]
        there_and_back = [Image.fromarray(frame) for frame in [*frames, *frames[-2:0:-1]]]
        there_and_back[0].save(working, save_all=True, append_images=there_and_back[1:], duration=_FRAME_MS, loop=0)


def _arrange(rows: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Arranges frames, (H, W) or (H, W, 3) each, with white gaps between them."""
    gaps = [(0, _GAP), (0, _GAP), (0, 0)][: rows[0][0].ndim]
    padded = [np.concatenate([np.pad(frame, gaps, constant_values=255) for frame in row], axis=1) for row in rows]
    return np.concatenate(padded)[:-_GAP, :-_GAP]


def slerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Interpolates spherically (Shoemake 1985): sin((1−t)θ)/sin θ·a + sin(tθ)/sin θ·b.

    Unlike a straight line, it keeps the norm of white noise. The endpoints are bit-exact.
    """
    if share in (0, 1) or not first.numel():
        return last if share == 1 else first
    cosine = torch.dot(first.flatten(), last.flatten()) / (first.norm() * last.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if not angle >= 1e-4:  # also if NaN: parallel or zero vectors
        return lerp(first, last, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)


def lerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Interpolates linearly: (1−t)·a + t·b."""
    return (1 - share) * first + share * last

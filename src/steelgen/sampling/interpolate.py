"""From one seed to another over the same mask: what the noise, or the latents, decide where the mask is fixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from steelgen.config.sample import SampleConfig
from steelgen.devices import randn_by_seed, resolve_precision
from steelgen.errors import InputError
from steelgen.files import new_file
from steelgen.generators import LatentGenerator
from steelgen.sampling.generate import generate_images, prepare_generator, take_start
from steelgen.sampling.mask_sources import build_mask_source, replace_images

_FRAME_MS = 120
_FRAMES_AT_ONCE = 4


def interpolate(
    config: SampleConfig,
    seeds: tuple[int, int],
    num_frames: int,
    mask_index: int,
    path: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draws `num_frames` images of one mask between two seeds.

    Args:
        config: generator, mask source and all that says how images are drawn; its output folder is not used.
        seeds: the seeds of the first and the last frame.
        num_frames: at least 2.
        mask_index: number of the mask in the mask source.
        path: .png writes a strip, .gif an animation that runs there and back.
        report: told (frames done, frames in all).

    Raises:
        InputError: if the path has another ending, exists already, there are fewer than 2 frames, or images of the
            generator do not follow from noise alone.
    """
    if path.suffix.lower() not in (".png", ".gif"):
        raise InputError(f"{path}: must end in .png (a strip) or .gif (an animation)")
    if path.exists():
        raise InputError(f"{path}: exists already; name another file or remove it")
    if num_frames < 2:
        raise InputError(f"frames {num_frames}: must be at least 2")
    generator = prepare_generator(config.generator, config.channels_last)
    info, geometry = generator.info, generator.geometry
    masks = build_mask_source(config.mask_source, info, geometry, config.seed)
    drawn = replace_images(masks, config, info, geometry).draw(mask_index)
    if "noise" not in generator.takes:
        raise InputError(f"interpolate: not applicable to generators of kind {generator.kind}")
    shape: tuple[int, ...] = (geometry.in_channels, *drawn.mask.shape)
    mix: Callable[[Tensor, Tensor, float], Tensor] = slerp
    if isinstance(generator, LatentGenerator):
        # Two numbers have no typical norm to be kept: straight on, or opposite ends would swing far out.
        shape, mix = (generator.latent_dim,), torch.lerp
    first, last = randn_by_seed(shape, seeds)
    noise = torch.stack([mix(first, last, float(share)) for share in np.linspace(0, 1, num_frames)])
    frames: list[NDArray[np.uint8]] = []
    for part in noise.split(min(config.batch_size, _FRAMES_AT_ONCE)):
        report(len(frames), num_frames)
        frames += generate_images(
            generator,
            [drawn.mask] * len(part),
            [seeds[0]] * len(part),
            config.solver,
            resolve_precision(config.mixed_precision),
            take_start(config, [drawn] * len(part)),
            part,
        )
    report(num_frames, num_frames)
    with new_file(path) as working:
        if path.suffix.lower() == ".png":
            Image.fromarray(np.concatenate(frames, axis=1)).save(working)
        else:
            there_and_back = [Image.fromarray(frame) for frame in [*frames, *frames[-2:0:-1]]]
            there_and_back[0].save(working, save_all=True, append_images=there_and_back[1:], duration=_FRAME_MS, loop=0)


def slerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): sin((1−t)θ)/sin θ·a + sin(tθ)/sin θ·b.

    Between two samples of white noise it keeps the norm, and so the look, of white noise; a straight line would not.
    """
    cosine = torch.dot(first.flatten(), last.flatten()) / (first.norm() * last.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:  # the same noise: nothing to turn
        return (1 - share) * first + share * last
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)

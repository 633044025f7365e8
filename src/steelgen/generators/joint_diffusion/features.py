"""The U-Net of joint diffusion as a source of features."""

from __future__ import annotations

import torch
from torch import Tensor

from steelgen.devices import randn_by_seed
from steelgen.errors import InputError
from steelgen.generators.features import DenoisingNetwork
from steelgen.generators.joint_diffusion.generator import JointDiffusion
from steelgen.generators.joint_diffusion.levels import embed_time


def open_network(generator: JointDiffusion) -> DenoisingNetwork:
    """See `steelgen.generators.families`; the mask is pure noise.

    Raises:
        InputError: if the generator has no image channels.
    """
    if not generator.channels:
        raise InputError(f"{generator.info.name}: a generator of masks alone has no features of images")
    network, schedule, channels = generator.network, generator.schedule, generator.channels
    blocks = [
        # With attention, a block ends with it.
        block
        for level in network.up_blocks
        for block in getattr(level, "attentions", level.resnets)
    ]

    def denoise(images: Tensor, timestep: int, seed: int) -> Tensor:
        times = torch.full((len(images),), timestep, device=images.device)
        clean = generator.encode_images(images)
        shape = (channels + generator.bits, *clean.shape[2:])
        noise = randn_by_seed(shape, [seed], images.device)
        noisy = schedule.add_noise(clean, noise[:, :channels], times)
        inputs = [noisy, noise[:, channels:].expand(len(images), -1, -1, -1)]
        if generator.section.self_conditioning:
            inputs.append(images.new_zeros(len(images), *shape))
        pure_noise = torch.full_like(times, len(schedule) - 1)
        return network(torch.cat(inputs, dim=1), embed_time(times), embed_time(pure_noise), return_dict=False)[0]

    stride = 2 ** (len(network.up_blocks) - 1) * generator.factor
    return DenoisingNetwork(network, blocks, stride, len(schedule), denoise)

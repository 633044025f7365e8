"""The semantic U-Net as a source of features."""

from __future__ import annotations

import torch
from torch import Tensor

from steelgen.devices import randn_by_seed
from steelgen.diffusion.noise import scale_to_flow
from steelgen.errors import InputError
from steelgen.generators.features import DenoisingNetwork
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion


def open_network(generator: SemanticDiffusion) -> DenoisingNetwork:
    """See `steelgen.generators.families`; the network gets the null mask.

    Raises:
        InputError: if the generator refines images.
    """
    if generator.low_resolution:
        raise InputError(
            f"{generator.info.name}: a refining generator sees no image alone, so it has no features of it"
        )
    network, schedule = generator.network, generator.schedule

    def denoise(images: Tensor, timestep: int, seed: int) -> Tensor:
        times = torch.full((len(images),), timestep, device=images.device)
        clean = generator.encode_images(images)
        noisy = schedule.add_noise(clean, randn_by_seed(clean.shape[1:], [seed], images.device), times)
        if schedule.prediction_type == "flow":
            noisy = scale_to_flow(noisy, *schedule.compute_levels(times))
        null_mask = images.new_zeros(len(images), generator.info.num_classes, *clean.shape[2:])
        return network(noisy, times, null_mask)

    stride = network.downsampling_factor * generator.factor
    return DenoisingNetwork(network, list(network.decoder), stride, len(schedule), denoise)

"""The loss on held-out micrographs, from the same crops, noise and timesteps at every step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.generators import Trainable

_SEED = 0


class Validation:
    """Measures the loss of a generator without its dropouts.

    Args:
        config: the run's; its seed changes nothing here, so that runs can be compared.
        trainable: with the weights to be measured whenever `measure` is called; the loss is that of its first phase.
        held_out: micrographs that are not trained on.
        accelerator: every process measures its share of the crops.
    """

    def __init__(
        self, config: RunConfig, trainable: Trainable, held_out: Micrographs, accelerator: Accelerator
    ) -> None:
        self._trainable = trainable
        self._accelerator = accelerator
        self._bins = config.validation.bins
        self._count = count = config.validation.crops
        crops = CropDataset(
            held_out,
            trainable.generator.geometry,
            _SEED,
            augment=False,
            randomness=trainable.held_out_randomness(count),
            **trainable.crop_options,
        )
        own = range(accelerator.process_index, count, accelerator.num_processes)
        size = config.train.train_batch_size
        self._batches = [
            (list(numbers), default_collate([crops[number] for number in numbers]))
            for numbers in (own[start : start + size] for start in range(0, len(own), size))
        ]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """val_loss and val_loss_bin_<k>, the same in all processes."""
        networks, device = self._trainable.networks, self._accelerator.device
        # Each process has zeros for the crops of the others.
        losses, positions = torch.zeros(2, self._count, device=device).unbind()
        located = False
        for network in networks.values():
            network.eval()
        for numbers, batch in self._batches:
            on_device = {key: value.to(device) for key, value in batch.items()}
            with self._accelerator.autocast():
                found = self._trainable.compute_loss(self._trainable.phases[0], networks, on_device, validates=True)
            losses[numbers] = found.losses.float()
            if found.positions is not None:
                positions[numbers], located = found.positions.float(), True
        for network in networks.values():
            network.train()
        losses, positions = self._accelerator.reduce(torch.stack([losses, positions]), "sum").cpu().unbind()
        by_bin = average_by_bin("val_loss", losses, positions, self._bins) if located else {}
        return {"val_loss": losses.double().mean().item(), **by_bin}


def average_by_bin(name: str, losses: Tensor, positions: Tensor, bins: int) -> dict[str, float]:
    """Mean losses (N,) by equal parts of the noise schedule, as `<name>_bin_<k>`; empty ones are left out.

    Args:
        positions: (N,) in [0, 1); see `Losses`.
    """
    numbers = (positions * bins).long().clamp(max=bins - 1)
    return {
        f"{name}_bin_{number}": losses[numbers == number].double().mean().item()
        for number in range(bins)
        if (numbers == number).any()
    }

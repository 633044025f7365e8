"""The loss on held-out micrographs, from the same crops, noise and timesteps at every step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.diffusion.randomness import draw_fractions
from steelgen.generators import Generator

_SEED = 0


class Validation:
    """Measures the loss of a generator without its dropouts.

    Args:
        config: the run's; its seed changes nothing here, so that runs can be compared.
        generator: with the weights to be measured whenever `measure` is called.
        held_out: micrographs that are not trained on.
        accelerator: every process measures its share of the crops.
    """

    def __init__(
        self, config: RunConfig, generator: Generator, held_out: Micrographs, accelerator: Accelerator
    ) -> None:
        self._generator = generator
        self._accelerator = accelerator
        self._bins = config.validation.bins
        edges = getattr(generator.network.config, "instance_edges", False)
        crops = CropDataset(
            held_out,
            generator.geometry,
            _SEED,
            augment=False,
            instance_edges=edges,
            randomness=generator.randomness(_SEED, 0.0),
        )
        count = config.validation.crops
        # Ranks of the golden-ratio sequence: exactly even over the noise schedule, and each micrograph all over it.
        ranks = draw_fractions(torch.arange(count), _SEED).argsort().argsort()
        self._positions = (ranks + 0.5) / count
        own = range(accelerator.process_index, count, accelerator.num_processes)
        size = config.train.train_batch_size
        self._batches: list[tuple[list[int], dict[str, Tensor]]] = []
        for start in range(0, len(own), size):
            numbers = list(own[start : start + size])
            batch = default_collate([crops[number] for number in numbers])
            self._batches.append((numbers, {**batch, "fraction": self._positions[numbers]}))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """val_loss and val_loss_bin_<k>, the same in all processes."""
        network, device = self._generator.network, self._accelerator.device
        losses = torch.zeros(len(self._positions), device=device)
        network.eval()
        for numbers, batch in self._batches:
            on_device = {key: value.to(device) for key, value in batch.items()}
            with self._accelerator.autocast():
                found = self._generator.compute_loss(network, on_device, validates=True)
            losses[numbers] = found.losses.float()
        network.train()
        losses = self._accelerator.reduce(losses, "sum").cpu()  # each process has zeros for the crops of the others
        return {
            "val_loss": losses.double().mean().item(),
            **average_by_bin("val_loss", losses, self._positions, self._bins),
        }


def average_by_bin(name: str, losses: Tensor, positions: Tensor, bins: int) -> dict[str, float]:
    """Mean losses (N,) by equal parts of the noise schedule, as `<name>_bin_<k>`; empty ones are left out.

    Args:
        positions: (N,) in [0, 1); see `CropLosses`.
    """
    numbers = (positions * bins).long().clamp(max=bins - 1)
    return {
        f"{name}_bin_{number}": losses[numbers == number].double().mean().item()
        for number in range(bins)
        if (numbers == number).any()
    }

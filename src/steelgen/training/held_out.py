"""Validation loss and scheduling of all evaluations on held-out micrographs."""

from __future__ import annotations

from functools import cached_property, partial

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.generators import Trainable
from steelgen.training.measurement import Measurement, load_mask_judge
from steelgen.training.meter import average_by_bin
from steelgen.training.state import TrainingState

_SEED = 0


class HeldOutChecks:
    """Evaluates the averaged weights; leaves training unchanged bit by bit.

    Args:
        held_out, training: micrographs of the held-out and of the training split.
        accelerator: of this process; all processes must call `run_due` at every step.
    """

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        held_out: Micrographs,
        training: Micrographs,
        accelerator: Accelerator,
    ) -> None:
        self._config, self._state = config, state
        judge = load_mask_judge(config, state.generator)
        self._build_measurement = partial(Measurement, config, state.generator, held_out, training, accelerator, judge)
        has_loss = "val_loss" in state.trainable.criteria
        self._validation = Validation(config, state.trainable, held_out, accelerator) if has_loss else None
        self.picture: NDArray | None = None
        """Picture of the latest measurement; see `Measurement.measure`."""

    def run_due(self) -> dict[str, float]:
        """Returns the values due at the state's step by name; empty at most steps."""
        step, measure_every = self._state.step, self._config.measurement.every
        if "images" not in self._state.generator.makes:
            measure_every = None
        validates = self._validation is not None and step % self._config.validation.every == 0
        measures = measure_every is not None and step % measure_every == 0
        if not validates and not measures:
            return {}
        values: dict[str, float] = {}
        with self._state.averaged():
            if validates and self._validation:
                values |= self._validation.measure()
            if measures:
                measured, self.picture = self.measurement.measure()
                values |= measured
        return values

    @cached_property
    def measurement(self) -> Measurement:
        """Built on first use, since it loads a network and searches the training set for held-out images."""
        return self._build_measurement()


class Validation:
    """Measures the loss of the first phase on held-out crops, without dropout; processes share the crops.

    Crops, noise and timesteps are always the same and independent of the run's seed, so that runs are comparable.
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
        self._members: dict[str, list[int]] = {}
        """Crop numbers by dataset of a mixture."""
        for number in range(count if held_out.shares else 0):
            name = held_out.shares[held_out.members[crops.micrograph_index(number)]].name
            self._members.setdefault(name, []).append(number)
        own = range(accelerator.process_index, count, accelerator.num_processes)
        size = config.train.train_batch_size
        self._batches = [
            (list(numbers), default_collate([crops[number] for number in numbers]))
            for numbers in (own[start : start + size] for start in range(0, len(own), size))
        ]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Returns val_loss, val_loss_bin_<k> and, for a mixture, val_loss/<dataset>, the same in all processes."""
        networks, device = self._trainable.networks, self._accelerator.device
        # Crops of other processes stay zero.
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
        by_dataset = {f"val_loss/{name}": losses[own].double().mean().item() for name, own in self._members.items()}
        return {"val_loss": losses.double().mean().item(), **by_bin, **by_dataset}

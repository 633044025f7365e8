"""A training step outside the training loop, for measurements."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.generators import Generator
from steelgen.generators.families import build_trainable
from steelgen.training.setup import build_accelerator, build_crops, place_networks, prepare
from steelgen.training.state import build_state


class TrainingStep:
    """A step of `steelgen train` with one phase, without data loader, logs and checkpoints.

    Args:
        resident: number of batches kept on the device and used in turn; 0 cuts new crops at each step.
        prepared: the generator and its micrographs; None builds those of the config.
    """

    def __init__(
        self, config: RunConfig, resident: int = 0, prepared: tuple[Generator, Micrographs] | None = None
    ) -> None:
        self._options = config.train
        self._accelerator = build_accelerator(config.train)
        generator, micrographs = prepared or prepare(config)
        self._trainable = build_trainable(generator, config)
        self._crops = build_crops(config, self._trainable, micrographs)
        place_networks(self._trainable.networks, config.train, self._accelerator.device)
        self.state = build_state(config, self._trainable, None, len(self._crops), criterion=None)
        (self._phase,) = self._trainable.phases
        self._resident = [self._cut(number) for number in range(resident)]

    def _cut(self, number: int) -> dict[str, Tensor]:
        size = self._options.train_batch_size
        batch = default_collate([self._crops[number * size + index] for index in range(size)])
        return {name: tensor.to(self._accelerator.device) for name, tensor in batch.items()}

    def __call__(self) -> Tensor:
        """Takes a step; returns the loss without waiting for the device."""
        state = self.state
        batch = self._resident[state.step % len(self._resident)] if self._resident else self._cut(state.step)
        with self._accelerator.autocast():
            loss = self._trainable.compute_loss(self._phase, self._trainable.networks, batch).losses.mean()
        loss.backward()
        clip_grad_norm_(state.network.parameters(), self._options.max_grad_norm or math.inf)
        optimizer = state.optimizers[self._phase.name]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        for average in state.averages:
            average.update(state.step)
        return loss.detach()

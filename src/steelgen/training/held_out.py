"""What held-out micrographs say of a run: validation and measurement, when they are due."""

from __future__ import annotations

from functools import cached_property

from accelerate import Accelerator
from numpy.typing import NDArray

from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs
from steelgen.training.measurement import Measurement
from steelgen.training.state import TrainingState
from steelgen.training.validation import Validation


class HeldOutChecks:
    """Looks at the averaged weights; leaves training as it was, bit by bit.

    Args:
        config: the run's.
        state: what is trained.
        held_out: micrographs that are not trained on.
        training: those that are.
        accelerator: this process; all must call `run_due` at every step.
    """

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        held_out: Micrographs,
        training: Micrographs,
        accelerator: Accelerator,
    ) -> None:
        self._config = config
        self._state = state
        self._held_out = held_out
        self._training = training
        self._accelerator = accelerator
        has_loss = "val_loss" in state.trainable.criteria
        self._validation = Validation(config, state.trainable, held_out, accelerator) if has_loss else None
        self.picture: NDArray | None = None
        """Of the latest measurement; see `Measurement.measure`."""

    def run_due(self) -> dict[str, float]:
        """The values that are due at the state's step, by name; none at most steps."""
        step, measure_every = self._state.step, self._config.measurement.every
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
        """Built when it is first due: it loads a network and searches the training set for held-out images."""
        return Measurement(self._config, self._state.generator, self._held_out, self._training, self._accelerator)

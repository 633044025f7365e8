"""What trainings against discriminators share: a count of steps for lazy penalties, and adaptive augmentation."""

from __future__ import annotations

from typing import Any

from steelgen.generators import Gather, SteadyState
from steelgen.generators.augment import AdaptiveStrength


class AdversarialTraining(SteadyState):
    """Base class of a `Trainable` with discriminators.

    Args:
        batch_size: crops per forward pass, the smallest epoch.
        ada_target: see `AdaptiveStrength`; None disables augmentation.
        ada_images: see `AdaptiveStrength`.
    """

    def __init__(self, batch_size: int, ada_target: float | None, ada_images: int) -> None:
        self._batch_size = batch_size
        self.strength = AdaptiveStrength(ada_target, ada_images) if ada_target else None
        self.steps = 0
        """Completed steps; they schedule the penalties."""

    @property
    def crop_options(self) -> dict[str, Any]:
        """See `Trainable.crop_options`."""
        return {"min_crops": self._batch_size}

    def end_step(self, gather: Gather) -> None:
        """See `Trainable.end_step`."""
        self.steps += 1
        if self.strength:
            self.strength.update(gather)

    def state(self) -> dict[str, Any]:
        """See `Trainable.state`."""
        return {"steps": self.steps, **({"augmentation": self.strength.state()} if self.strength else {})}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainable.restore`; checkpoints of older versions may lack the state."""
        self.steps = state.get("steps", 0)
        if self.strength and "augmentation" in state:
            self.strength.restore(state["augmentation"])

"""What a training run is made from, as digests: by these a run that goes on tells whether it is still the same."""

from __future__ import annotations

from typing import Any

from steelgen.config.train import FinetuneConfig, RunConfig
from steelgen.data.crops import Micrographs
from steelgen.generators.saved import hash_generator
from steelgen.runs import BATCH_FIELD
from steelgen.training.setup import effective_batch


def describe_inputs(
    config: RunConfig, micrographs: Micrographs, held_out: Micrographs | None, num_processes: int
) -> dict[str, Any]:
    """By dotted field of the config what decides in its place, wherever it lies and however it is shared out."""
    inputs: dict[str, Any] = {
        "data.dataset": micrographs.digest,
        BATCH_FIELD: effective_batch(config.train, num_processes),
    }
    if held_out:
        inputs["validation.split"] = held_out.digest
    if isinstance(config, FinetuneConfig):
        inputs["checkpoint"] = hash_generator(config.checkpoint)
    return inputs

"""Training of the generators that benchmarks compare."""

from __future__ import annotations

from pathlib import Path

from common import LinePrinter

from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.errors import InputError
from steelgen.training.loop import finetune, train


def train_to_end(config: RunConfig) -> Path:
    """Trains or fine-tunes a generator, or resumes its run, and returns its export.

    Raises:
        InputError: if the run cannot be trained, or a signal ended it.
    """
    if isinstance(config, FinetuneConfig):
        result = finetune(config, LinePrinter(), resume=True)
    else:
        assert isinstance(config, TrainConfig)
        result = train(config, LinePrinter(), resume=True)
    if result.export is None:
        stopped = f"stopped by {result.stopped_by} at step {result.global_step}"
        raise InputError(f"{config.run_dir}: {stopped}; run it again to resume")
    return result.export

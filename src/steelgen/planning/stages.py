"""Stages of a planned workflow that take more than one rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steelgen.config.base import parse_config
from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.errors import InputError
from steelgen.evaluation.segment import COMPLETED
from steelgen.planning import rules
from steelgen.planning.machine import Machine, time_step
from steelgen.planning.rules import Choice

_SEGMENTER_CROP = 128
"""Edge of the crops of the segmenter that labels micrographs, in px of these, as in docs/utility.md."""
_SEGMENTER_MULTIPLE = 32
"""Of the edge of smaller micrographs; the encoder halves five times."""


def build_labeling(
    dataset: Path, unlabeled: Path, output_dir: Path, steps: int, smallest_edge: int, test_split: str | None
) -> tuple[dict[str, Any], Path]:
    """Builds the config of the segmenter that labels unlabeled micrographs.

    Args:
        dataset: dataset folder of the labeled micrographs.
        unlabeled: folder of the others.
        output_dir: of the segmenter.
        steps: its training steps.
        smallest_edge: shortest edge of all micrographs in px.
        test_split: split for its scores; None without one.

    Returns:
        The config, and the dataset folder of all micrographs that it writes.
    """
    edge = min(_SEGMENTER_CROP, smallest_edge // _SEGMENTER_MULTIPLE * _SEGMENTER_MULTIPLE)
    values = {
        "dataset": str(dataset),
        "output_dir": str(output_dir),
        "unlabeled": str(unlabeled),
        "test_split": test_split,
        "validate_every": max(1, steps // 6),
        "image_size": edge,
        "crop_size": edge,
        "segmenter": {"architecture": "unet:efficientnet-lite0", "steps": steps, "batch_size": 8, "augmentation": {}},
    }
    return values, output_dir / COMPLETED


def find_start(
    start: Choice, training: dict[str, Any], generator: dict[str, Any]
) -> tuple[Choice, dict[str, Any], RunConfig]:
    """Tries to fine-tune the chosen model; trains a generator from scratch if it does not fit.

    Args:
        generator: the section of the generator that is trained from scratch.
    """
    from steelgen.training.setup import prepare_finetuning

    if start.value:
        values = {**training, "checkpoint": start.value}
        config = parse_config(values, FinetuneConfig, origin="plan")
        try:
            prepare_finetuning(config)
            return start, values, config
        except InputError as error:
            start = Choice(start.name, None, f"from scratch, since {start.value} does not accept this set: {error}")
    values = {**training, "generator": generator}
    return start, values, parse_config(values, TrainConfig, origin="plan")


def build_refining(
    start: Choice,
    training: dict[str, Any],
    factor: int,
    run_dir: Path,
    machine: Machine,
    own_minutes: float | None,
    choose_intervals: Callable[[int], Choice],
    minutes: float,
) -> tuple[Choice, dict[str, Any]]:
    """Builds the config of the stage that refines the images of a training config; its step is timed.

    Args:
        start: the refining stage to fine-tune.
        own_minutes: its time; None if both stages share `minutes`.
        choose_intervals: see `rules.choose_intervals`, for its steps.
    """
    data = training["data"]
    values: dict[str, Any] = {
        **{name: dict(section) for name, section in training.items() if isinstance(section, dict)},
        "run_dir": str(run_dir),
        "data": {**data, "crop_size": max(8, round(data["crop_size"] / factor))},
    }
    generator = {"unet": dict(rules.REFINING_NETWORK), "low_resolution": {"factor": factor}}
    start, values, config = find_start(start, values, generator)
    step = time_step(config, machine)
    steps = rules.choose_steps(own_minutes or minutes, step.seconds).value
    values["train"] |= {
        "max_steps": steps,
        **({"max_minutes": own_minutes} if own_minutes else {}),
        "train_batch_size": step.batch_size,
        "gradient_accumulation_steps": step.accumulation,
        "learning_rate": rules.choose_learning_rate(start.value, rules.REFINING_NETWORK["base_channels"]).value,
        "warmup_steps": min(100, steps // 10),
        "ema_decay": rules.choose_ema_decay(steps).value,
    }
    set_intervals(values, choose_intervals(steps))
    return start, values


def set_intervals(training: dict[str, Any], intervals: Choice) -> None:
    """Sets the intervals of `rules.choose_intervals` in a training config."""
    training["train"]["checkpoint_every"] = intervals.value["checkpoint"]
    for name in ("preview", "validation", "measurement"):
        training[name]["every"] = intervals.value[name]

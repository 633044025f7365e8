"""`tune_sample`: chooses a sample config by what its pairs are worth to a quick segmenter on validation micrographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from steelgen import __version__
from steelgen.changes import open_search
from steelgen.config.base import Section, config_to_json, load_config, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.tune import TuneConfig
from steelgen.config.utility import UtilityConfig, parse_code
from steelgen.errors import InputError
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.data import load_validation_study
from steelgen.evaluation.utility.training import run_cell
from steelgen.files import Record, load_json, load_record, save_json
from steelgen.runs import describe_environment

CONFIG_FILE, RESULT, CHOSEN = "config.json", "tune.json", "sample.json"


class _Score(Record):
    """seedK.json of a choice."""

    mean_iou: float = Field(ge=0, le=1)
    best_step: int = Field(ge=1)


def tune_sample(
    config: TuneConfig, run_stage: Callable[[Section], None], report: Callable[[str], None]
) -> dict[str, Any]:
    """Samples pairs for each choice, trains segmenters with them, and writes tune.json and the chosen sample.json.

    All choices share seeds, real micrographs and steps. The test split is not read. Finished sets of pairs and
    segmenters are kept, so a stopped search resumes.

    Args:
        run_stage: runs sampling by its config; the command line calls the function behind the command.
        report: receives one line per choice and segmenter.

    Returns:
        The content of tune.json: rows by choice with `mean_iou`, `by_seed`, and `difference` to the first choice by
        seed; `chosen` is the name with the highest mean, of equal ones the first.

    Raises:
        InputError: if a config, the dataset or the output folder cannot be used.
    """
    choices = {name: build_choice(config, name) for name in config.changes}  # fails before anything takes time
    build_study(config, next(iter(choices)))
    open_search(config.output_dir / CONFIG_FILE, config, "changes", "search")
    rows: list[dict[str, Any]] = []
    for name, choice in choices.items():
        report(f"{name}: sampling")
        run_stage(choice)
        scores = [score_choice(config, name, seed) for seed in config.seeds]
        first = rows[0]["by_seed"] if rows else scores
        rows.append(
            {
                "name": name,
                "changes": config.changes[name],
                "mean_iou": float(np.mean(scores)),
                "by_seed": scores,
                "difference": [score - other for score, other in zip(scores, first, strict=True)],
            }
        )
        report(f"{name}: validation mIoU {rows[-1]['mean_iou']:.3f}")
    chosen = max(rows, key=lambda row: row["mean_iou"])["name"]
    result = {
        "steelgen": __version__,
        "config": config_to_json(config),
        "environment": describe_environment(),
        "choices": rows,
        "chosen": chosen,
    }
    original = load_config(config.sample, SampleConfig)
    kept = {"output_dir": original.output_dir, "num_samples": original.num_samples}
    save_json(config.output_dir / CHOSEN, config_to_json(choices[chosen].model_copy(update=kept)))
    save_json(config.output_dir / RESULT, result)
    return result


def build_choice(config: TuneConfig, name: str) -> SampleConfig:
    """Builds the sample config of a choice.

    Raises:
        InputError: if the file or a change cannot be used, or masks or images are from another split than train_split:
            pairs with validation masks would be judged by these masks.
    """
    values = load_json(config.sample)
    if not isinstance(values, dict):
        raise InputError(f"{config.sample}: must be a config of `steelgen sample`")
    changes = {**config.changes[name], "output_dir": str(_find_pairs(config, name)), "num_samples": config.num_samples}
    overrides = [f"{field}={json.dumps(value)}" for field, value in changes.items()]
    choice = parse_config(values, SampleConfig, overrides, origin=f"{config.sample} with changes.{name}")
    for section in ("mask_source", "start_images", "filter"):
        split = getattr(getattr(choice, section), "split", config.train_split)
        if split != config.train_split:
            raise InputError(
                f"{config.sample} with changes.{name}: {section}.split: {split!r} is not the train_split "
                f"{config.train_split!r}, the only one that pairs may be made from"
            )
    return choice


def score_choice(config: TuneConfig, name: str, seed: int) -> float:
    """Trains a segmenter with the pairs of a choice, unless it is finished; returns its best validation mIoU."""
    path = config.output_dir / name / f"seed{seed}.json"
    if not path.is_file():
        study = build_study(config, name)
        cell = run_cell(Cell(parse_code(config.code), config.architecture, seed), load_validation_study(study), study)
        save_json(path, {"mean_iou": cell["test"]["mean_iou"], "best_step": cell["best_step"]})
    return load_record(path, _Score).mean_iou


def build_study(config: TuneConfig, name: str) -> UtilityConfig:
    """Builds the config of the study whose networks score a choice."""
    values = {
        **{field: config_to_json(config)[field] for field in ("dataset", "train_split", "val_split", "training")},
        "generated": str(_find_pairs(config, name)),
        "output_dir": str(config.output_dir / name),
        "codes": [config.code],
        "architectures": [config.architecture],
        "seeds": config.seeds,
    }
    return parse_config(values, UtilityConfig, origin=f"changes.{name}")


def _find_pairs(config: TuneConfig, name: str) -> Path:
    return config.output_dir / name / "samples"

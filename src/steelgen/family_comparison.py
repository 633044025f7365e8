"""`compare_families`: generators trained, sampled and judged on one dataset at equal training time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from steelgen import __version__
from steelgen.changes import open_search
from steelgen.config.base import Section, config_to_json, parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.families import FamiliesConfig, FamilySection
from steelgen.config.sample import SampleConfig
from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.errors import InputError
from steelgen.evaluation.comparison import build_comparison
from steelgen.evaluation.family_table import build_families_page, compare_figures
from steelgen.evaluation.results import load_evaluation
from steelgen.files import Record, load_json, load_record, new_file, save_json
from steelgen.generators import Generator
from steelgen.runs import RESULT_FILE, describe_environment, load_result
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator

CONFIG_FILE, RESULT = "config.json", "families.json"


class _Spent(Record):
    """seconds.json of a family."""

    training: float = Field(ge=0)


class _Speed(Record):
    """speed.json of a family."""

    images_per_second: float = Field(gt=0)
    parameters: int = Field(ge=0)


def compare_families(
    config: FamiliesConfig, run_stage: Callable[[Section], None], report: Callable[[str], None]
) -> dict[str, Any]:
    """Trains, samples and evaluates each generator, then writes families.json, families.html and comparison.html.

    Finished stages are kept, so a stopped comparison resumes. Training time is that of all attempts together, by the
    wall clock, including previews and measurements of the config.

    Args:
        run_stage: runs one stage by its config; the command line calls the function behind the stage's command.
        report: receives one line per stage.

    Returns:
        The content of families.json.

    Raises:
        InputError: if a config, the dataset or the output folder cannot be used, or a generator needs more than masks.
    """
    trainings = {name: build_training(config, name) for name in config.families}  # fails before anything takes time
    open_search(config.output_dir / CONFIG_FILE, config, "families", "comparison")
    for name, training in trainings.items():
        folder = config.output_dir / name
        if not (folder / "evaluation").is_dir() or not (folder / "speed.json").is_file():
            _train(training, folder, config.minutes, run_stage, report)
            generator = prepare_generator(training.run_dir)
            for stage in list_stages(config, name, generator):
                if not _is_finished(stage):
                    report(f"{name}: {type(stage).__name__.removesuffix('Config').lower()}")
                    run_stage(stage)
            report(f"{name}: speed")
            save_json(folder / "speed.json", _measure_speed(config, config.families[name], generator))
    folders = [config.output_dir / name / "evaluation" for name in config.families]
    rows = [_summarize(config, name, trainings[name]) for name in config.families]
    result = {
        "steelgen": __version__,
        "config": config_to_json(config),
        "environment": describe_environment(),
        "families": rows,
        "figures": compare_figures(rows),
    }
    with new_file(config.output_dir / "comparison.html") as working:
        working.write_text(build_comparison(folders), encoding="utf-8")
    with new_file(config.output_dir / "families.html") as working:
        working.write_text(build_families_page(result), encoding="utf-8")
    save_json(config.output_dir / RESULT, result)
    return result


def build_training(config: FamiliesConfig, name: str) -> RunConfig:
    """Builds the config of a family's training from its file.

    Raises:
        InputError: if the file cannot be used.
    """
    path = config.families[name].config
    values = load_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise InputError(f"families.{name}: {path}: must be a config of `steelgen train` or `steelgen finetune`")
    geometry = {key: getattr(config, key) for key in ("image_size", "crop_size", "scale_range", "in_channels")}
    data = {**values["data"], "dataset": str(config.dataset), "split": config.train_split, **geometry}
    train = {**values.get("train", {}), "max_minutes": config.minutes}
    values |= {"run_dir": str(config.output_dir / name / "run"), "data": data, "train": train}
    return parse_config(values, FinetuneConfig if "checkpoint" in values else TrainConfig, origin=str(path))


def list_stages(config: FamiliesConfig, name: str, generator: Generator) -> list[Section]:
    """Lists the configs of sampling, evaluation and study of a trained family.

    Generators that need masks get those of test_split for the evaluation and those of train_split for the study.

    Raises:
        InputError: if the generator needs other inputs, such as images, or makes no images.
    """
    if generator.needs - {"masks"} or "images" not in generator.makes:
        needed = ", ".join(sorted(generator.needs - {"masks"})) or "no images to compare"
        raise InputError(f"families.{name}: a generator of kind {generator.kind} cannot be compared: {needed}")
    folder, family = config.output_dir / name, config.families[name]
    with_masks = "masks" in generator.needs

    def build_sampling(split: str, output: Path) -> SampleConfig:
        source = {"kind": "split", "dataset": str(config.dataset), "split": split} if with_masks else {"kind": "none"}
        solver = {"solver": config_to_json(family.solver)} if "solver" in generator.takes else {}
        values = {
            "generator": str(folder / "run"),
            "output_dir": str(output),
            "mask_source": source,
            "num_samples": config.num_samples,
            "seed": config.seed,
            **solver,
        }
        return parse_config(values, SampleConfig, origin=f"families.{name}")

    stages: list[Section] = [build_sampling(config.test_split, folder / "samples")]
    study = config.utility if with_masks or "masks" in generator.makes else None
    if study:
        pairs = folder / ("pairs" if with_masks else "samples")
        if with_masks:
            stages.append(build_sampling(config.train_split, pairs))
        values = {
            **config_to_json(study),
            "dataset": str(config.dataset),
            "generated": str(pairs),
            "output_dir": str(folder / "utility"),
            **{key: getattr(config, key) for key in ("train_split", "val_split", "test_split")},
        }
        stages.append(parse_config(values, UtilityConfig, origin=f"families.{name}"))
    shared = ("features", "segmenter", "microstructure", "memorization")
    values = {
        "generated": str(folder / "samples"),
        "dataset": str(config.dataset),
        "output_dir": str(folder / "evaluation"),
        "train_split": config.train_split,
        "held_out_split": config.test_split,
        "seed": config.seed,
        "utility": str(folder / "utility") if study else None,
        **{key: config_to_json(config)[key] for key in shared},
    }
    return [*stages, parse_config(values, EvaluateConfig, origin=f"families.{name}")]


def _train(
    training: RunConfig,
    folder: Path,
    minutes: float,
    run_stage: Callable[[Section], None],
    report: Callable[[str], None],
) -> None:
    """Trains for what is left of the time."""
    path = folder / "seconds.json"
    spent = load_record(path, _Spent).training if path.is_file() else 0.0
    left = minutes - spent / 60
    ended = (training.run_dir / RESULT_FILE).is_file() and load_result(training.run_dir).finished
    if ended or left <= 0:
        return
    report(f"{folder.name}: training for {left:.1f} minutes")
    limited = training.model_copy(update={"train": training.train.model_copy(update={"max_minutes": left})})
    with _record_time(path, spent):
        run_stage(limited)
    if not load_result(training.run_dir).finished:
        raise InputError(f"{training.run_dir}: training was stopped early; run the same command again to resume")


@contextmanager
def _record_time(path: Path, spent: float) -> Iterator[None]:
    """Adds the time of the block to the file, also if the block fails."""
    started = time.monotonic()
    try:
        yield
    finally:
        save_json(path, {"training": spent + time.monotonic() - started})


def _is_finished(stage: Section) -> bool:
    """Whether an evaluation is finished; sampling and studies know by themselves what is missing."""
    return isinstance(stage, EvaluateConfig) and stage.output_dir.is_dir()


def _measure_speed(config: FamiliesConfig, family: FamilySection, generator: Generator) -> dict[str, float]:
    """Times one batch for masks of the test split, after a warm-up with one image."""
    micrographs = load_micrographs(config.dataset, config.test_split, generator.geometry.in_channels)
    _, masks = cut_crops(micrographs, generator.geometry, config.timed_images)
    generate_images(generator, SamplingBatch(list(masks[:1]), [0], family.solver))
    started = time.perf_counter()
    generate_images(generator, SamplingBatch(list(masks), range(len(masks)), family.solver))
    seconds = time.perf_counter() - started
    counts = [parameter.numel() for network in generator.networks.values() for parameter in network.parameters()]
    return {"images_per_second": len(masks) / seconds, "parameters": sum(counts)}


def _summarize(config: FamiliesConfig, name: str, training: RunConfig) -> dict[str, Any]:
    folder, evaluation = config.output_dir / name, load_evaluation(config.output_dir / name / "evaluation")
    speed = load_record(folder / "speed.json", _Speed)
    kind = config_to_json(training).get("generator", {}).get("kind", "fine-tuned")
    return {
        "name": name,
        "kind": kind,
        "steps": load_result(training.run_dir).global_step,
        "training_minutes": load_record(folder / "seconds.json", _Spent).training / 60,
        "parameters": speed.parameters,
        "images_per_second": speed.images_per_second,
        "figures": evaluation["figures"],
        "verdict": evaluation["verdict"],
    }

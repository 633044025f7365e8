"""Damaged files written by steelgen are read or raise `InputError`, never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steelgen.cluster.scripts import slurm_folder
from steelgen.cluster.status import run_status
from steelgen.config.base import parse_config
from steelgen.config.evaluate import GeometrySection
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.folder import load_dataset_info
from steelgen.errors import InputError
from steelgen.evaluation.comparison import build_comparison
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.judge_utility import judge_utility
from steelgen.evaluation.labeler import load_labeler
from steelgen.evaluation.segment import train_labeler
from steelgen.evaluation.sets import find_generated, resolve_geometry
from steelgen.evaluation.study import utility
from steelgen.evaluation.study_views import find_view
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.utility.study_page import build_utility_section
from steelgen.evaluation.verdict import judge_study
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import build_trainable, load_generator
from steelgen.runs import read_metrics
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.training.checkpoint import load_checkpoint
from steelgen.training.loop import train
from steelgen.training.state import build_state
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.damage import CASES, assert_short, damage_json
from tests.evaluation import test_classification, test_evaluate, test_instances, test_utility
from tests.training.test_loop import Recorder

Reader = Callable[[Path], Any]
"""Reads a file, given the folder of all files."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that steelgen writes: a run, samples, an evaluation, a study, a segmenter."""
    root = tmp_path_factory.mktemp("results")
    write_tiny_dataset(root / "tiny")
    train(_train_config(root), Recorder())
    values = {
        "generator": str(root / "run"),
        "output_dir": str(root / "samples"),
        "mask_source": {"kind": "split", "dataset": str(root / "tiny")},
        "num_samples": 4,
        "solver": {"num_inference_steps": 1},
    }
    sample(parse_config(values, SampleConfig))
    quick = {"microstructure": {"max_images": 4}}
    evaluate(test_evaluate.build_config(root / "samples", root / "tiny", root / "evaluation", **quick))
    utility(_study_config(root))
    test_classification.save_sides(root, {"train": (3, 3), "val": (2, 2), "test": (3, 3)})
    test_classification.save_textures(root / "good", 4, 0, True)
    utility(_classification_config(root))
    test_instances.save_discs(root / "real", {"train": 2, "val": 1, "test": 1})
    utility(_instance_config(root))
    values = {"dataset": str(root / "tiny"), "output_dir": str(root / "segmenter"), "segmenter": test_evaluate.QUICK}
    train_labeler(parse_config({**values, "image_size": 16, "crop_size": 24}, SegmentConfig))
    slurm_folder(root / "samples").mkdir()
    jobs = {"sample": {"job_id": "7", "script": "a.sbatch", "shards": 2, "after": None}}
    (slurm_folder(root / "samples") / "jobs.json").write_text(json.dumps(jobs))
    return root


def _train_config(root: Path) -> TrainConfig:
    return parse_config(tiny_train_config(root / "tiny", root / "run", max_steps=2), TrainConfig)


def _study_config(root: Path) -> Any:
    return test_utility.build_config(root / "tiny", root / "samples", root / "study", geometry={"image_size": 16})


def _classification_config(root: Path) -> Any:
    return test_classification.build_config(root, root / "classification", seeds=[0])


def _instance_config(root: Path) -> Any:
    more: dict[str, Any] = {"generated": None, "codes": ["RALLF000"], "architectures": ["unet"], "seeds": [0]}
    return test_instances.build_config(root, root / "instances", **more)


def _sample(root: Path) -> None:
    generator = load_generator(root / "run" / "export")
    edge = generator.geometry.image_size
    masks = torch.zeros(1, edge, edge, dtype=torch.long)
    assert draw_for_masks(generator, masks, [0], SolverSection(num_inference_steps=1)).isfinite().all()


def _resume(root: Path) -> None:
    config = _train_config(root)
    trainable = build_trainable(load_generator(root / "run"), config)
    state = build_state(config, trainable, None, 10, "val_loss")
    load_checkpoint(root / "run" / "checkpoints" / "step-000002", state)


def _read_samples(root: Path) -> None:
    run_status(root / "samples")
    resolve_geometry(find_generated(root / "samples"), GeometrySection())


def _replay(root: Path) -> None:
    (root / "replayed.png").unlink(missing_ok=True)
    replay(root / "samples" / "metadata.jsonl", 1, root / "replayed.png")


def _read_study(root: Path) -> None:
    study = load_study_result(root / "study")
    judge_utility(study)
    judge_study(study)
    build_utility_section(study)


def _read_other_study(folder: Path) -> None:
    study = load_study_result(folder)
    judge_utility(study)
    judge_study(study)
    find_view(study).section(study)


FILES: dict[str, Reader] = {
    "run/export/generator.json": _sample,
    "run/export/model_index.json": _sample,
    "run/export/unet/config.json": _sample,
    "run/export/scheduler/scheduler_config.json": _sample,
    "run/checkpoints/step-000002/training.json": _resume,
    "run/result.json": lambda root: run_status(root / "run"),
    "run/config.json": lambda root: run_status(root / "run"),
    "run/metrics.jsonl": lambda root: list(read_metrics(root / "run" / "metrics.jsonl")),
    "samples/sampling.json": _read_samples,
    "samples/metadata.jsonl": _replay,
    "samples.slurm/jobs.json": lambda root: run_status(root / "samples"),
    "evaluation/evaluation.json": lambda root: build_comparison([root / "evaluation", root / "evaluation"]),
    "study/utility.json": _read_study,
    "study/study.json": lambda root: run_status(root / "study"),
    "study/cells/RALLF000-unet-seed0.json": lambda root: utility(_study_config(root)),
    "classification/utility.json": lambda root: _read_other_study(root / "classification"),
    "classification/study.json": lambda root: run_status(root / "classification"),
    "classification/cells/R2F000-cnn-seed0.json": lambda root: utility(_classification_config(root)),
    "instances/utility.json": lambda root: _read_other_study(root / "instances"),
    "instances/cells/RALLF000-unet-seed0.json": lambda root: utility(_instance_config(root)),
    "instances/cells/RALLF000-unet-seed0.coco.json": lambda root: utility(_instance_config(root)),
    "segmenter/segmenter.json": lambda root: load_labeler(root / "segmenter", "cpu"),
    "tiny/dataset.json": lambda root: load_dataset_info(root / "tiny"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_results(folder: Path, name: str) -> None:
    path, read = folder / name, FILES[name]
    whole = path.read_text()
    read(folder)
    lines = whole.splitlines() if path.suffix == ".jsonl" else [whole]
    accepted, count = 0, max(CASES // 50, 1)
    try:
        for number in range(count):
            rng = np.random.default_rng((11, number))
            path.write_bytes(b"\n".join([damage_json(lines[0], rng), *(line.encode() for line in lines[1:])]))
            try:
                read(folder)
                accepted += 1
            except InputError as error:
                assert_short(str(error))
            except Exception as error:
                raise AssertionError(f"case {number}: {path.read_bytes()[:2000]!r}") from error
    finally:
        path.write_text(whole)
    # A test in which nothing is refused tests nothing; but damaged lines of metrics are skipped.
    assert accepted < count or name.endswith("metrics.jsonl")

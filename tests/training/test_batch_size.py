"""tune-batch: the search, a limit in a real child process, a GPU that runs out, the command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import load_config, parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.semantic_diffusion.training import SemanticDiffusionTraining
from steelgen.training import batch_size
from steelgen.training.batch_size import BatchTrial, find_largest, take_steps, tune_batch
from steelgen.training.failures import split_batch
from tests.conftest import tiny_train_config


@pytest.mark.parametrize("most", [1, 7, 8, 24])
@pytest.mark.parametrize("largest", [0, 1, 3, 8, 11, 100])
def test_search_finds_the_largest_and_never_tries_one_twice(most, largest):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= largest

    assert find_largest(fits, most) == min(most, largest)
    assert len(tried) == len(set(tried))
    assert all(1 <= size <= most for size in tried)


def test_crops_a_step_stay_by_the_largest_divisor():
    assert split_batch(24, 24) == (24, 1)
    assert split_batch(24, 11) == (8, 3)
    assert split_batch(7, 6) == (1, 7)


def test_gpu_that_runs_out(tiny_dataset, tmp_path, monkeypatch):
    """CUDA's exception, raised in place of a GPU: real steps of more than 5 crops run out."""
    compute_loss = SemanticDiffusionTraining.compute_loss

    def run_out(self, phase, networks, batch, **options):
        if len(batch["image"]) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute_loss(self, phase, networks, batch, **options)

    monkeypatch.setattr(SemanticDiffusionTraining, "compute_loss", run_out)
    monkeypatch.setattr(
        batch_size, "try_batch", lambda config, size, limit, device: take_steps(config, size, torch.device("cpu"))
    )
    values = tiny_train_config(tiny_dataset, tmp_path / "run", train_batch_size=12)
    plan = tune_batch(parse_config(values, TrainConfig))
    assert {trial.batch_size: trial.memory_gib is not None for trial in plan.trials} == {
        1: True,
        2: True,
        4: True,
        8: False,
        6: False,
        5: True,
    }
    assert (plan.largest, plan.train_batch_size, plan.gradient_accumulation_steps) == (5, 4, 3)
    assert all(trial.images_per_second > 0 for trial in plan.trials if trial.memory_gib)
    assert not (tmp_path / "run").exists()


def test_command_respects_a_limit_and_writes_a_config(tiny_dataset, tmp_path, monkeypatch):
    """Peaks of a fake machine: 0.5 GiB and 0.1 a crop."""

    def pretend(config, size, limit, device):
        needed = 0.5 + 0.1 * size
        return BatchTrial(size, needed if needed * 2**30 <= limit else None, 10.0)

    monkeypatch.setattr(batch_size, "try_batch", pretend)
    path, out = tmp_path / "train.json", tmp_path / "tuned.json"
    path.write_text(json.dumps(tiny_train_config(tiny_dataset, tmp_path / "run", train_batch_size=32)))
    arguments = ["tune-batch", "-c", str(path), "--memory-gib", "1.55", "--write", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "--set train.train_batch_size=8 --set train.gradient_accumulation_steps=4" in done.output
    tuned, before = (load_config(file, TrainConfig) for file in (out, path))
    assert (tuned.train.train_batch_size, tuned.train.gradient_accumulation_steps) == (8, 4)
    assert tuned.data == before.data
    with pytest.raises(InputError, match=r"not one crop of image_size 16 fits into 0\.20 GiB"):
        tune_batch(before, memory_gib=0.2)


def test_a_child_process_measures_and_is_held_to_its_limit(tiny_dataset, tmp_path):
    config = parse_config(tiny_train_config(tiny_dataset, tmp_path / "run"), TrainConfig)
    measured = batch_size.try_batch(config, 2, 4 * 2**30, torch.device("cpu"))
    assert 0.1 < measured.memory_gib < 4
    assert measured.images_per_second > 0
    assert batch_size.try_batch(config, 2, int(measured.memory_gib * 2**30 / 2), torch.device("cpu")).memory_gib is None

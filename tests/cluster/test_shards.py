"""Shards: together they draw what one call draws, at once and in any order."""

import json
import os
import subprocess
import sys

import pytest

from steelgen.cluster.status import run_status
from steelgen.config.base import config_to_json, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.errors import InputError
from steelgen.evaluation.utility.cells import cell_path, list_cells
from steelgen.files import save_json
from steelgen.sampling.sample import sample
from steelgen.shards import Shard, find_shard, parse_shard
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "x/4", "1", "1/4/2", "-1/4", "", "²/4"])
def test_impossible_shards_are_refused(text):
    with pytest.raises(InputError, match="shard"):
        parse_shard(text)


def test_shards_share_everything_out():
    parts = [list(Shard(number, 4).indices(10)) for number in range(1, 5)]
    assert parts == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


def array(task, count, first, last, step=1):
    values = {"ID": task, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_shard_of_the_environment():
    assert find_shard({}) is None
    assert find_shard({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert find_shard({"WORLD_SIZE": "4", "RANK": "0"}) == Shard(1, 4)
    assert find_shard(array(2, 4, 0, 3)) == Shard(3, 4)
    assert find_shard(array(5, 3, 1, 5, step=2)) == Shard(3, 3)
    assert find_shard(array(3, 1, 3, 3)) is None
    with pytest.raises(InputError, match="gaps"):
        find_shard(array(7, 2, 1, 7))


def test_shards_at_once_draw_what_one_call_draws(tiny_dataset, tmp_path):
    train(parse_config(tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=1), TrainConfig), Recorder())
    values = {
        "generator": str(tmp_path / "run"),
        "output_dir": str(tmp_path / "shards"),
        "mask_source": {"kind": "split", "dataset": str(tiny_dataset), "split": "test"},
        "num_samples": 7,
        "batch_size": 2,
        "solver": {"num_inference_steps": 2},
    }
    (tmp_path / "sample.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "steelgen", "sample", "-c", str(tmp_path / "sample.json"), "--shard"]
    tasks = [subprocess.Popen([*command, f"{number}/3"], stdout=subprocess.PIPE, text=True) for number in (1, 2, 3)]
    for task in tasks:
        output, _ = task.communicate(timeout=120)
        assert task.returncode == 0
        assert "gather all shards" in output
    shards = tmp_path / "shards"
    assert [part.state for part in run_status(shards, 3)] == ["complete"] * 3 + ["missing"]
    assert not (shards / "metadata.jsonl").exists()
    assert not (shards / "contact_sheet.png").exists()
    (shards / "samples/000004.png").unlink()
    half = shards / "samples/.000004.1-77.png"  # of process 77 of another machine
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    states = [(part.done, part.wanted, part.state) for part in run_status(shards, 3)[:3]]
    assert states == [(3, 3, "complete"), (1, 2, "partial"), (2, 2, "complete")]
    whole = sample(parse_config({**values, "output_dir": str(tmp_path / "whole")}, SampleConfig))
    sample(parse_config(values, SampleConfig))
    for path in whole.rglob("*"):
        if path.is_file() and path.name != "sampling.json":
            assert (shards / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert {p.relative_to(shards) for p in shards.rglob("*")} == {p.relative_to(whole) for p in whole.rglob("*")}


def test_status_of_a_study_counts_cells_by_code_and_by_shard(tmp_path):
    values = {
        "dataset": "d",
        "generated": "g",
        "output_dir": str(tmp_path),
        "architectures": ["unet", "smp:FPN"],
        "seeds": [0, 1],
    }
    config = parse_config(values, UtilityConfig)
    save_json(tmp_path / "study.json", {"study": "a hash", "config": config_to_json(config)})
    for cell in list_cells(config)[:3]:
        save_json(cell_path(tmp_path, cell), {})
    states = {part.name: (part.done, part.wanted, part.state) for part in run_status(tmp_path, 4)}
    assert states == {
        "RALLF000 unet": (1, 2, "partial"),
        "RALLF000 smp:FPN": (1, 2, "partial"),
        "RALLFALL unet": (1, 2, "partial"),
        "RALLFALL smp:FPN": (0, 2, "missing"),
        "shard 1/4": (1, 2, "partial"),
        "shard 2/4": (1, 2, "partial"),
        "shard 3/4": (1, 2, "partial"),
        "shard 4/4": (0, 2, "missing"),
        "gathered": (0, 1, "missing"),
    }


def test_status_of_something_else(tmp_path):
    with pytest.raises(InputError, match="contains no training run"):
        run_status(tmp_path)

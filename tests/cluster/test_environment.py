"""Environments that launchers, batch scripts and containers leave half told: one clear line, never a traceback."""

import json
import os
import pwd

import pytest
from typer.testing import CliRunner

from steelgen.allocation import check_launch, read_count
from steelgen.cli.app import app
from steelgen.cluster.submission import load_profile
from steelgen.errors import InputError
from steelgen.files import default_cache_dir
from steelgen.shards import find_shard
from tests.conftest import tiny_train_config

RENDEZVOUS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def bare(monkeypatch):
    """No variable of a launcher or of Slurm is set."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "STEELGEN_EXPECTED_")) or name in RENDEZVOUS or name == "LOCAL_WORLD_SIZE":
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "4"}, "RANK is not set"),
        ({"WORLD_SIZE": "four", "RANK": "0"}, "WORLD_SIZE=four: must be a non-negative integer"),
        ({"WORLD_SIZE": "4", "RANK": ""}, "RANK=: must be a non-negative integer"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "shard 3/2"),
        ({"SLURM_ARRAY_TASK_COUNT": "3"}, "SLURM_ARRAY_TASK_ID is not set"),
        ({f"SLURM_ARRAY_TASK_{name}": "2" for name in ("COUNT", "ID", "MIN", "MAX")}, "SLURM_ARRAY_TASK_STEP is not"),
        ({f"SLURM_ARRAY_TASK_{name}": "2" for name in ("COUNT", "ID", "MIN", "MAX", "STEP")}, "has gaps"),
    ],
)
def test_shards_of_half_an_environment(environment, named):
    with pytest.raises(InputError, match=named):
        find_shard(environment)


def test_counts_are_whole_numbers():
    assert read_count({"A": "12"}, "A") == 12
    assert read_count({}, "A", 7) == 7
    for text in ("x", "-1", "1.5", "²", " 1"):
        with pytest.raises(InputError, match=r"A=.*must be a non-negative integer"):
            read_count({"A": text}, "A", 7)


def test_a_launcher_tells_all_or_nothing():
    check_launch({})
    check_launch(RENDEZVOUS)
    for name in RENDEZVOUS.keys() - {"LOCAL_RANK"}:
        with pytest.raises(InputError, match=f"LOCAL_RANK=0 is set, but {name} is not"):
            check_launch({key: value for key, value in RENDEZVOUS.items() if key != name})
    check_launch({"WORLD_SIZE": "1"})
    with pytest.raises(InputError, match="WORLD_SIZE=2 is set, but RANK, MASTER_ADDR, MASTER_PORT is not"):
        check_launch({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"STEELGEN_EXPECTED_PROCESSES": "x"},
        {"STEELGEN_EXPECTED_GPUS": "all"},
        {"SLURM_STEP_NUM_TASKS": "many"},
    ],
)
def test_training_in_half_an_environment_is_one_line(bare, tiny_dataset, tmp_path, environment):
    (tmp_path / "train.json").write_text(json.dumps(tiny_train_config(tiny_dataset, tmp_path / "run")))
    for name, value in environment.items():
        bare.setenv(name, value)
    result = CliRunner().invoke(app, ["train", "-c", str(tmp_path / "train.json")])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("steelgen: ")
    assert result.stderr.count("\n") == 1
    assert next(iter(environment)) in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_user_without_home_and_entry_is_told_what_to_set(bare, tmp_path):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    bare.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "STEELGEN_CACHE", "XDG_CACHE_HOME"):
        bare.delenv(name, raising=False)
    for ask in (default_cache_dir, lambda: load_profile(None)):
        with pytest.raises(InputError, match=r"HOME is not set .*set HOME or STEELGEN_CACHE"):
            ask()
    bare.setenv("STEELGEN_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path

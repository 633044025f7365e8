"""Where scalars go: TensorBoard by default, Weights & Biases (a fake one) if asked for, and memory among them."""

import json
import sys
import types

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


def run_tiny(dataset, run_dir, resume=False, **options):
    values = tiny_train_config(dataset, run_dir, **options)
    values["preview"]["num_images"] = 0
    train(parse_config(values, TrainConfig), Recorder(), resume)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place; `runs` lists what `init` was called with, `points` what each run id was sent."""
    module = types.ModuleType("wandb")
    module.runs, module.points, module.finished = [], {}, []
    module.Error = type("Error", (Exception,), {})

    class Run:
        def __init__(self, id):
            self.id = id or f"run-{len(module.runs)}"

        def log(self, values, step):
            module.points.setdefault(self.id, []).append({"step": step, **values})

        def finish(self):
            module.finished.append(self.id)

    def init(**options):
        module.runs.append(options)
        return Run(options["id"])

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_wandb_gets_every_line_and_a_resumed_run_keeps_its_id(tiny_dataset, tmp_path, wandb):
    run = tmp_path / "uhcs"
    run_tiny(tiny_dataset, run, max_steps=2, trackers=["wandb"])
    rows = run_tiny(tiny_dataset, run, resume=True, max_steps=3, trackers=["wandb"])
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert wandb.points == {"run-1": rows}
    assert wandb.finished == ["run-1", "run-1"]
    first, second = wandb.runs
    assert (first["id"], second["id"], second["resume"]) == (None, "run-1", "allow")
    assert (first["project"], first["name"], first["dir"]) == ("steelgen", "uhcs", str(run))
    assert second["config"] == json.loads((run / "config.json").read_text())
    assert not (run / "tensorboard").exists()


def test_wandb_that_cannot_begin_says_so_in_one_line(tiny_dataset, tmp_path, wandb, monkeypatch):
    def fail(**options):
        raise wandb.Error("no API key configured")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(InputError, match=r"^wandb: no API key configured; set WANDB_MODE=offline to run"):
        run_tiny(tiny_dataset, tmp_path / "run", trackers=["tensorboard", "wandb"])


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")])
def test_wandb_that_is_not_installed_is_named_before_anything_is_written(tiny_dataset, tmp_path, monkeypatch, module):
    """The second is what a folder of wandb's logs beside the script imports as."""
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(InputError, match=r"train\.trackers: wandb is not installed; pip install 'steelgen\[wandb\]'"):
        run_tiny(tiny_dataset, tmp_path / "run", trackers=["tensorboard", "wandb"])
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_figures_of_metrics_jsonl_and_memory_is_one(tiny_dataset, tmp_path):
    before = psutil.Process().memory_info().rss / 2**30
    rows = run_tiny(tiny_dataset, tmp_path / "run", max_steps=2)
    after = psutil.Process().memory_info().rss / 2**30
    for row in rows:
        assert 0.9 * before < row["memory_gib"] < 1.1 * after
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    for name in ("loss", "memory_gib"):
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2]
        assert [point.value for point in points] == pytest.approx([row[name] for row in rows])

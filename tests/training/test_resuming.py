"""Resumed runs: one process at a time, with the same config and inputs."""

import json
import os
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import config_to_json, parse_config
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.errors import InputError
from steelgen.locks import LOCK_FILE
from steelgen.runs import FREE_FIELDS, find_decisive_changes
from steelgen.training.loop import finetune, train
from tests.conftest import tiny_train_config
from tests.training.test_crashes import crash_config, fork_training
from tests.training.test_loop import Recorder, assert_same_tensors, load_weights


def resume_run(dataset, run_dir, changes=None, allow_changed=(), **options):
    values = config_to_json(crash_config(dataset, run_dir, **{"max_steps": 2, **options}))
    for field, value in (changes or {}).items():
        section = values
        *path, last = field.split(".")
        for key in path:
            section = section[key]
        section[last] = value
    return train(parse_config(values, TrainConfig), Recorder(), resume=True, allow_changed=allow_changed)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_second_training_in_the_folder_is_refused_until_the_first_has_ended(tiny_dataset, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    config = crash_config(tiny_dataset, run, max_steps=10**6, checkpoint_every=1)
    first = fork_training(config, log, most_steps=3)
    wait_until((run / "checkpoints/step-000003").is_dir)
    (tmp_path / "train.json").write_text(json.dumps(config_to_json(config)))
    before = (run / "config.json").read_bytes()
    command = ["train", "-c", str(tmp_path / "train.json"), "--set", "seed=5"]
    owner = json.loads((run / LOCK_FILE).read_text())
    for resume in ("auto", "never"):
        second = CliRunner().invoke(app, [*command, "--resume", resume])
        assert second.exit_code == 2, second.output
        line = second.stderr.splitlines()[-1]
        assert line.startswith(f"steelgen: {run}: ")
        if resume == "auto":
            assert f"{owner['owner']} on {owner['host']} (process {first}, since {owner['started']})" in line
    assert (run / "config.json").read_bytes() == before
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    observer = Recorder()
    ended = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 4})})
    assert train(ended, observer, resume=True).global_step == 4
    assert "taken over from" in observer.events[0]
    assert not (run / LOCK_FILE).exists()


def test_of_two_that_go_on_at_the_same_time_one_does(tiny_dataset, tmp_path):
    """The one that comes second, whichever that is, leaves with 2 and changes nothing."""
    run = tmp_path / "run"
    options = dict(checkpoint_every=1)
    train(crash_config(tiny_dataset, tmp_path / "whole", max_steps=6), Recorder())
    train(crash_config(tiny_dataset, run, max_steps=2, **options), Recorder())
    config = crash_config(tiny_dataset, run, max_steps=6, **options)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    children = [fork_training(config, log, most_steps=2) for log in logs]
    wait_until(lambda: any("is writing to this folder" in log.read_text() for log in logs if log.exists()))
    wait_until((run / "checkpoints/step-000004").is_dir)
    (winner,) = (child for child in children if child == json.loads((run / LOCK_FILE).read_text())["pid"])
    (loser,) = (child for child in children if child != winner)
    assert os.waitstatus_to_exitcode(os.waitpid(loser, 0)[1]) == 2
    os.kill(winner, signal.SIGKILL)
    os.waitpid(winner, 0)
    train(config, Recorder(), resume=True)
    assert_same_tensors(load_weights(tmp_path / "whole", 6), load_weights(run, 6))


def test_every_way_out_leaves_no_lock(tiny_dataset, tmp_path):
    """The end, SIGTERM, bad input once the folder is open, and an interruption."""

    def leave(reason):
        def at_step(step):
            if reason == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            elif isinstance(reason, BaseException):
                raise reason

        return Recorder(at_step)

    for number, reason in enumerate([None, "SIGTERM", InputError("no"), KeyboardInterrupt()]):
        run = tmp_path / f"run{number}"
        config = crash_config(tiny_dataset, run, max_steps=2)
        if isinstance(reason, BaseException):
            with pytest.raises(type(reason)):
                train(config, leave(reason))
        else:
            train(config, leave(reason))
        assert (run / "config.json").is_file()
        assert not (run / LOCK_FILE).exists()


def test_of_several_processes_the_first_locks(tiny_dataset, tmp_path):
    """They end as one; where another process holds the lock the first says who, and none of them trains."""
    # Without trackers, since TensorBoard's file may still grow while the lock is held.
    values = {"max_steps": 2, "checkpoint_every": 1, "trackers": []}

    def train_by_two(run):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
        config = crash_config(tiny_dataset, run, **values)
        children = [
            fork_training(config, tmp_path / f"log{rank}", {**meeting, "RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    run, log = tmp_path / "run", tmp_path / "log0"
    assert train_by_two(run) == [0, 0], log.read_text()
    assert not (run / LOCK_FILE).exists()
    assert json.loads((run / "inputs.json").read_text())["train.train_batch_size"] == 4
    other = tmp_path / "other"
    held = fork_training(crash_config(tiny_dataset, other, **values), tmp_path / "log", most_steps=1)
    try:
        # In step 2 it waits, when that is in the metrics.
        wait_until(
            lambda: (other / "metrics.jsonl").is_file() and (other / "metrics.jsonl").read_text().count("\n") == 2
        )
        before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
        assert train_by_two(other) == [2, 2]
        assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    finally:
        os.kill(held, signal.SIGKILL)
        os.waitpid(held, 0)
    assert f"steelgen: {other}: " in log.read_text()
    assert f"(process {held}, since" in log.read_text()


DECISIVE = {
    "seed": 1,
    "data.crop_size": 20,
    "data.augment": False,
    "train.learning_rate": 1e-3,
    "diffusion.mask_dropout": 0.5,
    "train.ema_decay": 0.5,
    "train.adam_betas": [0.5, 0.9],
    "generator.noise.num_train_timesteps": 50,
    "generator.unet.dropout": 0.3,
    "validation.crops": 64,
    "train.train_batch_size": 4,
}


def test_what_decides_may_not_change_unless_allowed(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    resume_run(tiny_dataset, run)
    written = (run / "config.json").read_bytes()
    for field, value in DECISIVE.items():
        with pytest.raises(InputError, match=rf"{run}: {field} was .+, is now .+: .* --allow-changed {field}$"):
            resume_run(tiny_dataset, run, {field: value}, max_steps=3)
        assert (run / "config.json").read_bytes() == written
        assert not (run / LOCK_FILE).exists()
    with pytest.raises(InputError, match=r"seed was 0, is now 1; train\.learning_rate was .*--allow-changed seed"):
        resume_run(tiny_dataset, run, {"seed": 1, "train.learning_rate": 1e-3}, max_steps=3)
    with pytest.raises(InputError, match=r"run: seed was 0, is now 1: "):
        resume_run(tiny_dataset, run, {"seed": 1, "train.learning_rate": 1e-3}, ["train"], max_steps=3)
    resume_run(tiny_dataset, run, {"seed": 1, "train.learning_rate": 1e-3}, ["train", "seed"], max_steps=3)
    resume_run(tiny_dataset, run, {"seed": 1, "train.learning_rate": 1e-3}, max_steps=4)  # as it now is
    noted = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert [(row["field"], row["before"], row["now"]) for row in noted] == [
        ("seed", 0, 1),
        ("train.learning_rate", 2e-4, 1e-3),
    ]


def test_before_the_first_checkpoint_anything_may_change(tiny_dataset, tmp_path):
    def fail(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(crash_config(tiny_dataset, tmp_path / "run", max_steps=2), Recorder(fail))
    assert resume_run(tiny_dataset, tmp_path / "run", {"seed": 3}).global_step == 2
    assert not (tmp_path / "run/changes.jsonl").exists()


def test_what_decides_nothing_may_change(tiny_dataset, tmp_path):
    """Each of the free fields, the place of the run and of the data, and how a step's crops are shared out."""
    resume_run(tiny_dataset, tmp_path / "run")
    moved, data = (tmp_path / "run").rename(tmp_path / "moved"), tiny_dataset.rename(tmp_path / "elsewhere")
    changes = {
        "data.num_workers": 1,
        "train.max_epochs": 50,
        "train.max_minutes": 5,
        "selection.patience_steps": 1000,
        "selection.stop_at_copies": True,
        "train.gradient_checkpointing": True,
        "train.tf32": False,
        "train.channels_last": False,
        "train.log_every": 7,
        "train.trackers": [],
        "train.checkpoint_every": 2,
        "train.keep_checkpoints": 5,
        "train.ema_snapshots_every": 3,
        "preview": {"every": 9, "num_images": 0},
        "train.train_batch_size": 1,
        "train.gradient_accumulation_steps": 2,
    }
    assert {*FREE_FIELDS} - changes.keys() == {"run_dir", "train.compile"}
    assert resume_run(data, moved, changes, max_steps=3).global_step == 3
    assert not (moved / "changes.jsonl").exists()


def test_where_the_learning_rate_decays_to_it_the_last_step_decides(tiny_dataset, tmp_path):
    settings = config_to_json(crash_config(tiny_dataset, tmp_path, max_steps=4, lr_scheduler="cosine"))
    longer = config_to_json(crash_config(tiny_dataset, tmp_path, max_steps=8, lr_scheduler="cosine"))
    assert [change.field for change in find_decisive_changes(settings, {}, longer, {})] == ["train.max_steps"]


@pytest.mark.parametrize(("split", "field"), [("train", "data.dataset"), ("val", "validation.split")])
def test_other_data_in_the_same_place_are_refused(tiny_dataset, tmp_path, split, field):
    """A single pixel of a single mask."""
    run = tmp_path / "run"
    resume_run(tiny_dataset, run)
    mask = tiny_dataset / split / "masks" / f"{split}1.png"
    with Image.open(mask) as opened:
        pixels, palette = np.array(opened), opened.getpalette()
    pixels[3, 4] = (pixels[3, 4] + 1) % 3
    changed = Image.fromarray(pixels)
    changed.putpalette(palette)
    changed.save(mask)
    with pytest.raises(InputError, match=rf'run: {field} was "[0-9a-f]+", is now "[0-9a-f]+": '):
        resume_run(tiny_dataset, run, max_steps=3)
    resume_run(tiny_dataset, run, max_steps=3, allow_changed=[field])
    assert json.loads((run / "changes.jsonl").read_text())["field"] == field


def test_runs_of_older_versions_go_on(tiny_dataset, tmp_path):
    """Their config lacks keys that are new since, and nothing says what their data were."""
    run = tmp_path / "run"
    resume_run(tiny_dataset, run)
    (run / "inputs.json").unlink()
    written = json.loads((run / "config.json").read_text())
    del written["measurement"], written["train"]["deterministic"]
    (run / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"data\.dataset was"):
        resume_run(shutil.copytree(tiny_dataset, tmp_path / "copy"), run, max_steps=3)
    assert resume_run(tiny_dataset, run, max_steps=3).global_step == 3
    assert (run / "inputs.json").is_file()


def test_a_fine_tuning_goes_on_from_the_generator_it_was_begun_with(tiny_dataset, tmp_path):
    train(crash_config(tiny_dataset, tmp_path / "run", max_steps=1), Recorder())
    values = config_to_json(crash_config(tiny_dataset, tmp_path / "tuned", max_steps=2))
    del values["generator"]

    def tune(checkpoint, **options):
        config = parse_config({**values, "checkpoint": str(checkpoint)}, FinetuneConfig)
        return finetune(config, Recorder(), resume=True, **options)

    tune(tmp_path / "run")
    values["train"]["max_steps"] = 3
    copy = shutil.copytree(tmp_path / "run/export", tmp_path / "copy")
    assert tune(copy).global_step == 3
    weights = load_file(copy / "unet/diffusion_pytorch_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copy / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match='tuned: checkpoint was "'):
        tune(copy)
    assert tune(copy, allow_changed=["checkpoint"]).global_step == 3


def test_allow_changed_needs_something_to_differ_from(tiny_dataset, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(tiny_train_config(tiny_dataset, tmp_path / "run")))
    result = CliRunner().invoke(app, ["train", "-c", str(tmp_path / "train.json"), "--allow-changed", "seed"])
    assert result.exit_code == 2
    assert "requires --resume auto" in result.stderr
    assert not (tmp_path / "run").exists()

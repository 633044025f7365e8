"""How training is shown in a log."""

import json

from steelgen.cli import progress
from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.loop import train
from tests.conftest import tiny_train_config


def test_a_step_that_is_saved_with_its_epochs_loss_but_not_logged(tiny_dataset, tmp_path, monkeypatch, capsys):
    """Its values are the loss of the epoch alone, without a speed to show."""
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0)
    values = tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=40, log_every=25, checkpoint_every=1)
    values["preview"] = {"num_images": 0}
    values["validation"] = {"split": None}
    train(parse_config(values, TrainConfig), progress._LineObserver(None))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("train_epoch_loss" in line and "loss" not in line for line in lines)  # what this is about
    shown = capsys.readouterr()
    assert "step 25/40  loss " in shown.out + shown.err

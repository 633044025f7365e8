"""How training is shown in a log."""

import json
import subprocess
import sys

from tests.conftest import tiny_train_config


def test_a_step_that_is_saved_with_its_epochs_loss_but_not_logged(tiny_dataset, tmp_path):
    """Its values are the loss of the epoch alone, without a speed to show."""
    values = tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=40, log_every=1000, checkpoint_every=1)
    values["preview"] = {"num_images": 0}
    values["validation"] = {"split": None}
    (tmp_path / "train.json").write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, "-m", "steelgen", "train", "-c", tmp_path / "train.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("train_epoch_loss" in line and "loss" not in line for line in lines)  # what this is about

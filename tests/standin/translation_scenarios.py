"""Translation on the pretended device: pools, penalties and spectra; no wait in a plain step, exact resume."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.generators import DrawRequest
from steelgen.generators.families import load_generator
from steelgen.training.loop import train
from tests.conftest import write_tiny_dataset
from tests.generators.test_translation import CUT, CYCLEGAN, build_values
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder, assert_same_checkpoints

MODES = {"cyclegan": CYCLEGAN, "cut": CUT}


@pytest.fixture
def sides(tmp_path):
    return write_tiny_dataset(tmp_path / "source"), write_tiny_dataset(tmp_path / "target", num_classes=2)


def run(sides, run_dir, generator, resume=False, at_step=lambda step, waits: None, **train_values):
    quiet = {"log_every": 6, "checkpoint_every": 100, "mixed_precision": "bf16", "max_steps": 6}
    quiet["gradient_accumulation_steps"] = 1
    values = build_values(sides, run_dir, generator, **{**quiet, **train_values})
    config = parse_config({**values, "measurement": {"every": None}, "preview": {"num_images": 0}}, TrainConfig)
    with steelgen_on_device() as waits:
        return train(config, Recorder(lambda step: at_step(step, waits)), resume)


@pytest.mark.parametrize("generator", MODES.values(), ids=MODES)
def test_a_plain_step_never_waits(generator, sides, tmp_path):
    """With penalties in every other step, and a pool that fills in step 2."""
    taken = {}
    run(sides, tmp_path / "run", generator, at_step=lambda step, waits: taken.update({step: waits.take()}))
    for step in (2, 3, 4, 5):
        assert taken[step].count() == 0, f"waits in step {step}:\n{taken[step].report()}"
    drawn = load_generator(tmp_path / "run").draw(DrawRequest([0, 1], images=torch.zeros(2, 1, 16, 16)))
    assert drawn.images.isfinite().all()


def test_training_resumes_exactly(sides, tmp_path):
    options = {"checkpoint_every": 3, "lr_scheduler": "constant_with_warmup"}
    run(sides, tmp_path / "whole", CYCLEGAN, **options)
    run(sides, tmp_path / "parts", CYCLEGAN, max_steps=3, **options)
    run(sides, tmp_path / "parts", CYCLEGAN, resume=True, **options)
    assert_same_checkpoints(*(tmp_path / name / "checkpoints/step-000006" for name in ("whole", "parts")))

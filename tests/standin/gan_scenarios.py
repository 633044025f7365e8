"""Adversarial training on the pretended device: two phases, penalties, augmentation; no wait in a plain step."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.generators import DrawRequest
from steelgen.generators.families import load_generator
from steelgen.training.loop import train
from tests.generators.test_style_gan import KINDS, style_config
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder, assert_same_checkpoints


def run(dataset, run_dir, kind, resume=False, at_step=lambda step, waits: None, **train_values):
    quiet = {"log_every": 6, "trackers": [], "checkpoint_every": 100, "mixed_precision": "bf16", "max_steps": 6}
    values = style_config(dataset, run_dir, kind, **{**quiet, **train_values})
    config = parse_config({**values, "measurement": {"every": None}, "preview": {"num_images": 0}}, TrainConfig)
    with steelgen_on_device() as waits:
        return train(config, Recorder(lambda step: at_step(step, waits)), resume)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_step_never_waits(kind, tiny_dataset, tmp_path):
    """With penalties at step 4, and with the probability of the transforms going up and down."""
    taken = {}
    run(tiny_dataset, tmp_path / "run", kind, at_step=lambda step, waits: taken.update({step: waits.take()}))
    for step in (2, 3, 4, 5):
        assert taken[step].count() == 0, f"waits in step {step}:\n{taken[step].report()}"
    generator = load_generator(tmp_path / "run")
    masks = torch.zeros(2, 16, 16, dtype=torch.int64) if generator.needs else None
    assert generator.draw(DrawRequest([0, 1], masks)).images.isfinite().all()


def test_training_resumes_exactly(tiny_dataset, tmp_path):
    run(tiny_dataset, tmp_path / "whole", "style", checkpoint_every=3)
    run(tiny_dataset, tmp_path / "parts", "style", checkpoint_every=3, max_steps=3)
    run(tiny_dataset, tmp_path / "parts", "style", resume=True, checkpoint_every=3)
    assert_same_checkpoints(*(tmp_path / name / "checkpoints/step-000006" for name in ("whole", "parts")))

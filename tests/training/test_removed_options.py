"""Options removed since 0.1: configs, generators and checkpoints written with their defaults still load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steelgen.bundled import resolve_bundled
from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder, assert_same_tensors, load_weights

WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
REMOVED = {
    "generator.noise.snr_gamma": (None, 5.0),
    "train.further_ema_decays": ([], [0.5]),
    "generator.unet.augmentation_conditioning": (False, True),
}
"""Each option's default and another value."""


@pytest.mark.parametrize("field", REMOVED)
def test_configs_that_hold_the_default_load_and_others_are_refused(field):
    *path, name = field.split(".")
    default, other = REMOVED[field]
    for value in (default, other):
        values = tiny_train_config("d", "r")
        section = values
        for part in path:
            section = section[part]
        section[name] = value
        if value == default:
            assert parse_config(values, TrainConfig) == parse_config(tiny_train_config("d", "r"), TrainConfig)
        else:
            with pytest.raises(InputError, match=f"{name} was removed: .*KID") as caught:
                parse_config(values, TrainConfig)
            assert "\n" not in str(caught.value)


def add_key(path, name, value):
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def age(run):
    """Adds to a run's files the keys that steelgen 0.1 wrote."""
    for path in run.rglob("generator.json"):
        add_key(path, "snr_gamma", None)
        add_key(path.parent / "unet" / "config.json", "augmentation_channels", 0)
    config = json.loads((run / "config.json").read_text())
    config["generator"]["noise"]["snr_gamma"] = None
    config["generator"]["unet"]["augmentation_conditioning"] = False
    config["train"]["further_ema_decays"] = []
    (run / "config.json").write_text(json.dumps(config))


def test_older_runs_resume_bit_identically(tiny_dataset, tmp_path):
    for name, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        values = tiny_train_config(tiny_dataset, tmp_path / name, max_steps=steps)
        values["preview"]["num_images"] = 0
        train(parse_config(values, TrainConfig), Recorder(), resume=name == "parts")
        if steps == 3:
            age(tmp_path / name)
    assert_same_tensors(*(load_weights(tmp_path / name, 6) for name in ("whole", "parts")))


def test_older_generators_draw_the_same(tiny_dataset, tmp_path, capfd):
    values = tiny_train_config(tiny_dataset, tmp_path / "run")
    values["preview"]["num_images"] = 0
    train(parse_config(values, TrainConfig), Recorder())
    capfd.readouterr()
    images = []
    for _ in range(2):
        generator = load_generator(tmp_path / "run")
        masks = torch.zeros(1, 16, 16, dtype=torch.long)
        images.append(draw_for_masks(generator, masks, [0], SolverSection(num_inference_steps=3)))
        age(tmp_path / "run")
    assert torch.equal(*images)
    assert capfd.readouterr().err == ""
    add_key(tmp_path / "run" / "export" / "unet" / "config.json", "augmentation_channels", 6)
    with pytest.raises(InputError, match=r"unet/config.json: augmentation_channels was removed: .*KID"):
        load_generator(tmp_path / "run")


def test_the_bundled_model_loads_its_weights_without_a_warning(tmp_path, capfd):
    generator = load_generator(Path("bundled:uhcs"))
    assert capfd.readouterr().err == ""
    for name, tensor in load_file(resolve_bundled(Path("bundled:uhcs")) / WEIGHTS).items():
        assert torch.equal(generator.network.state_dict()[name], tensor.float())
    generator.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())
    assert "augmentation_channels" not in saved

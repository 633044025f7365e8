"""Training on the pretended device: it goes through, resumes exactly, and waits for the device only where it must."""

import json
import os
import signal

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.loop import train
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder, assert_same_tensors, load_weights

DEFAULT = {"train": {"mixed_precision": "bf16", "mask_dropout": 0.5}}
ISDM_LIKE = {
    "generator": {
        "unet": {"learn_sigma": True, "instance_edges": True},
        "noise": {
            "prediction_type": "epsilon",
            "zero_terminal_snr": False,
            "beta_schedule": "linear",
            "standardize": False,
        },
    },
    "train": {"mixed_precision": "fp16", "timestep_sampling": "loss_second_moment"},
}
RECIPES = {"default": DEFAULT, "isdm_like": ISDM_LIKE}
WITH_EACH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
ACCUMULATION, SOLVER_STEPS, VALIDATION_BATCHES = 2, 3, 2


def merge(values, *changes):
    values = dict(values)
    for change in changes:
        for key, value in change.items():
            values[key] = merge(values.get(key, {}), value) if isinstance(value, dict) else value
    return values


def run(dataset, run_dir, *changes, resume=False, at_step=lambda step, waits: None):
    shared = {"train": {"gradient_accumulation_steps": ACCUMULATION}}
    config = parse_config(merge(tiny_train_config(dataset, run_dir), shared, *changes), TrainConfig)
    with steelgen_on_device() as waits:
        return train(config, Recorder(lambda step: at_step(step, waits)), resume)


@WITH_EACH
def test_training_resumes_exactly(recipe, tiny_dataset, tmp_path):
    """With accumulation, EMA, previews and validation, stopped by a signal; the undisturbed run also measures."""
    upkeep = {
        "train": {"max_steps": 4, "checkpoint_every": 2},
        "preview": {"every": 2},
        "validation": {"every": 2, "crops": 4, "bins": 2},
    }
    measured = {"every": 4, "num_images": 4, "searched_images": 2, "solver": {"num_inference_steps": 1}}
    result = run(tiny_dataset, tmp_path / "whole", upkeep, recipe, {"measurement": measured})
    assert result.export.is_dir()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "val_loss", "train_epoch_loss", "kid", "copies"} <= {name for row in rows for name in row}
    assert len(list((tmp_path / "whole" / "previews").glob("step-*.png"))) == 3

    def stop(step, waits):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(tiny_dataset, tmp_path / "parts", upkeep, recipe, at_step=stop).stopped_by == "SIGTERM"
    run(tiny_dataset, tmp_path / "parts", upkeep, recipe, resume=True)
    assert_same_tensors(load_weights(tmp_path / "whole", 4), load_weights(tmp_path / "parts", 4))


@WITH_EACH
def test_training_is_the_cpus(recipe, tiny_dataset, tmp_path):
    """In fp32 and without the network's dropout, up to the last bits."""
    exact = {
        "train": {"mixed_precision": "no", "max_steps": 2, "gradient_accumulation_steps": 1},
        "generator": {"unet": {"dropout": 0.0}},
        "preview": {"num_images": 0},
    }
    run(tiny_dataset, tmp_path / "device", recipe, exact)
    values = merge(tiny_train_config(tiny_dataset, tmp_path / "cpu"), recipe, exact)
    train(parse_config(values, TrainConfig), Recorder())
    on_device, on_cpu = (load_weights(tmp_path / name, 2) for name in ("device", "cpu"))
    for key in on_cpu:
        torch.testing.assert_close(on_device[key], on_cpu[key], atol=1e-5, rtol=1e-4, msg=key)


@pytest.fixture(scope="module", params=RECIPES)
def waits(request, tmp_path_factory):
    """Waits by the step that they fall into; a line of the log at step 5, validation at 6, a preview at 8."""
    folder, taken = tmp_path_factory.mktemp(request.param), {}
    quiet = {
        "train": {"log_every": 5, "trackers": [], "max_steps": 9},
        "preview": {"every": 7, "num_images": 2, "solver": {"num_inference_steps": SOLVER_STEPS}},
        "validation": {"every": 6, "crops": 2 * VALIDATION_BATCHES, "bins": 2},
        "selection": {"criterion": "none"},
    }
    run(
        write_tiny_dataset(folder / "tiny"),
        folder / "run",
        RECIPES[request.param],
        quiet,
        at_step=lambda step, waits: taken.update({step: waits.take()}),
    )
    return taken


def test_a_plain_step_never_waits(waits):
    """Nor one at which an epoch ends. The first one, which may copy tables to the device, is left out."""
    for step in (2, 3, 4, 7):
        count = waits[step].count()
        assert count == 0, f"{count} waits in step {step} of {ACCUMULATION} micro-batches:\n{waits[step].report()}"


def test_a_line_of_the_log_waits_for_its_figures(waits):
    """However many micro-batches it tells of."""
    assert 0 < waits[5].count() <= 8, f"waits of a step with a line of the log:\n{waits[5].report()}"


def test_validation_waits_for_its_batches_and_the_losses(waits):
    """At most 8 tensors of a batch to the device, and the losses of all back."""
    limit = 8 * VALIDATION_BATCHES + 4
    assert 0 < waits[6].count() <= limit, f"waits of a step with validation:\n{waits[6].report()}"


def test_a_preview_waits_once_a_solver_step(waits):
    """And a few times for the whole batch of images: their noise, masks and timesteps there, the images back."""
    limit = SOLVER_STEPS + 12
    assert 0 < waits[8].count() <= limit, f"waits of a preview of {SOLVER_STEPS} solver steps:\n{waits[8].report()}"

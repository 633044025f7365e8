"""The recipe's options through the whole loop: learning-rate schedules, log-normal noise levels, flow matching."""

import math

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


def run_tiny(dataset, run_dir, noise=(), **options):
    values = tiny_train_config(dataset, run_dir, **options)
    values["generator"]["noise"] |= dict(noise)
    values["preview"]["num_images"] = 0
    observer = Recorder()
    train(parse_config(values, TrainConfig), observer)
    return observer.values


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({"lr_scheduler": "cosine"}, lambda share: 0.5 * (1 + math.cos(math.pi * share))),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_restarts": 2},
            lambda share: 0.5 * (1 + math.cos(math.pi * (3 * share % 1))),
        ),
        ({"lr_scheduler": "polynomial", "lr_power": 2}, lambda share: (1 - share) ** 2),
        ({"lr_scheduler": "linear"}, lambda share: 1 - share),
        ({"lr_scheduler": "constant_with_warmup"}, lambda share: 1.0),
    ],
)
def test_learning_rate_schedules_by_hand(tiny_dataset, tmp_path, options, decay):
    """Two steps of warm-up, then the decay over the other eight."""
    values = run_tiny(tiny_dataset, tmp_path / "run", max_steps=10, warmup_steps=2, learning_rate=0.01, **options)
    expected = [0.0, 0.005, *(0.01 * decay(step / 8) for step in range(8))]
    # diffusers' polynomial ends at 1e-7, not at 0
    assert [values[step + 1]["learning_rate"] for step in range(10)] == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize(
    ("noise", "sampling"),
    [
        ({"prediction_type": "flow", "beta_schedule": "flow"}, "even"),
        ({"prediction_type": "flow"}, "loss_second_moment"),
        ({}, "lognormal"),
    ],
)
def test_trained_generators_load_and_draw(tiny_dataset, tmp_path, noise, sampling):
    run_tiny(tiny_dataset, tmp_path / "run", noise, timestep_sampling=sampling)
    generator = load_generator(tmp_path / "run")
    assert generator.schedule.config.prediction_type == noise.get("prediction_type", "v_prediction")
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    ours = draw_for_masks(generator, masks, [0], SolverSection(name="ddpm", num_inference_steps=20, guidance_scale=1.0))
    assert ours.isfinite().all()


def test_flow_through_the_respaced_sampler(tiny_dataset, tmp_path):
    """The same network by two samplers of different code: both follow DDIM's path over a linear schedule."""
    noise = {
        "prediction_type": "flow",
        "beta_schedule": "linear",
        "zero_terminal_snr": False,
        "num_train_timesteps": 25,
    }
    run_tiny(tiny_dataset, tmp_path / "run", noise, max_steps=20)
    generator = load_generator(tmp_path / "run")
    masks, seeds = torch.zeros(1, 16, 16, dtype=torch.long), [0]
    section = SolverSection(name="ddim", num_inference_steps=25, brightness="network")
    ours = draw_for_masks(generator, masks, seeds, section)
    respaced = RespacedSolverSection(name="respaced_ddim", num_train_timesteps=25, clip_denoised=False)
    torch.testing.assert_close(draw_for_masks(generator, masks, seeds, respaced), ours, atol=1e-3, rtol=0)


def test_flow_schedule_has_no_signal_at_its_end(tiny_dataset, tmp_path):
    with pytest.raises(InputError, match="beta_schedule flow ends without signal"):
        run_tiny(tiny_dataset, tmp_path, {"beta_schedule": "flow", "zero_terminal_snr": False})

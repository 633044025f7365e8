"""Power-function averages and their reconstruction after the fact, against the paper's numbers and direct tracking."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.families import load_generator
from steelgen.training.ema import PowerAverage, compute_gamma
from steelgen.training.loop import train
from steelgen.training.post_hoc_ema import compute_coefficients, list_snapshots, reconstruct_average, save_snapshot
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder, assert_same_tensors


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_is_the_papers(std, gamma):
    assert compute_gamma(std) == pytest.approx(gamma, abs=0.005)


def test_gamma_gives_the_profiles_deviation():
    """By numerical integration of τ^γ on [0, 1]."""
    gamma, times = compute_gamma(0.17), np.linspace(0, 1, 200_001)
    weights = times**gamma / (times**gamma).sum()
    mean = weights @ times
    assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(0.17, abs=1e-4)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_impossible_lengths_are_refused(std):
    with pytest.raises(InputError, match=r"at most 0\.289"):
        compute_gamma(std)


def walk(run_dir, steps, every, stored, tracked):
    """A weight that wanders; saves snapshots of `stored` lengths and returns the directly tracked averages."""
    network = torch.nn.Linear(4, 4, bias=False)
    averages = {std: PowerAverage(network, std) for std in (*stored, *tracked)}
    rng = torch.Generator().manual_seed(0)
    weights = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight += 0.1 * torch.randn(4, 4, generator=rng) + 0.02
        weights.append(network.weight.detach().double().clone())
        for average in averages.values():
            average.update(step)
        if step % every == 0:
            for std in stored:
                save_snapshot(run_dir, step, averages[std])
    return torch.stack(weights), {std: average.state_dict()["weight"] for std, average in averages.items()}


def test_average_weighs_the_steps_by_the_power_function(tmp_path):
    weights, tracked = walk(tmp_path, 200, 1000, [], [0.1])
    power = compute_gamma(0.1) + 1
    edges = (np.arange(201) / 200) ** power
    expected = torch.einsum("t,tij->ij", torch.from_numpy(np.diff(edges)), weights)
    torch.testing.assert_close(tracked[0.1].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("std", [0.06, 0.08, 0.15])
def test_reconstruction_equals_direct_tracking(tmp_path, std):
    weights, tracked = walk(tmp_path, 1024, 64, [0.05, 0.1], [std])
    rebuilt, step, error = reconstruct_average(tmp_path, std)
    assert step == 1024
    assert error < 0.02
    wander = weights[-500:].std()
    assert (rebuilt["weight"] - tracked[std]).abs().max() < 0.02 * wander
    # The test can fail: the stored averages themselves are further away.
    assert (tracked[0.05] - tracked[std]).abs().max() > 0.05 * wander


def test_a_stored_average_is_found_again(tmp_path):
    _, tracked = walk(tmp_path, 256, 64, [0.05, 0.1], [])
    rebuilt, _, error = reconstruct_average(tmp_path, 0.1)
    assert error < 1e-5
    torch.testing.assert_close(rebuilt["weight"], tracked[0.1], rtol=1e-4, atol=1e-4)


def test_coefficients_minimize_the_distance_of_profiles():
    """Against dense least squares over the profiles sampled at many times."""
    steps, stds = [200, 200, 400, 400], [0.05, 0.1, 0.05, 0.1]
    factors, error = compute_coefficients(steps, stds, 400, 0.2)
    times = (np.arange(40_000) + 0.5) / 100

    def profile(step, std):
        gamma = compute_gamma(std)
        return np.where(times <= step, (gamma + 1) / step * (times / step) ** gamma, 0)

    columns = np.stack([profile(step, std) for step, std in zip(steps, stds, strict=True)], axis=1)
    wanted = profile(400, 0.2)
    dense = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    np.testing.assert_allclose(factors, dense, atol=1e-3)
    distance = np.linalg.norm(columns @ dense - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(distance, rel=1e-3)


OPTIONS = {"max_steps": 6, "ema_power_stds": [0.1, 0.2], "ema_snapshots_every": 2, "checkpoint_every": 3}


def run_tiny(dataset, run_dir, resume=False, observer=None, **options):
    values = tiny_train_config(dataset, run_dir, **{**OPTIONS, **options})
    values["preview"]["num_images"] = 0
    return train(parse_config(values, TrainConfig), observer or Recorder(), resume)


def test_snapshots_and_averages_resume_bit_by_bit(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "whole")

    def die(step):
        if step == 5:  # after the snapshot of step 4, two steps past the checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny_dataset, tmp_path / "parts", observer=Recorder(die))
    run_tiny(tiny_dataset, tmp_path / "parts", resume=True)
    names = {path.name for path in (tmp_path / "whole/ema").iterdir()}
    assert names == {f"step-{step:06d}-{std}.safetensors" for step in (2, 4, 6) for std in (0.1, 0.2)}
    assert {path.name for path in (tmp_path / "parts/ema").iterdir()} == names
    for name in names:
        assert_same_tensors(*(load_file(tmp_path / run / "ema" / name) for run in ("whole", "parts")))
    state = load_file(tmp_path / "parts/checkpoints/step-000006/average-power-0.1.safetensors")
    assert_same_tensors(state, load_file(tmp_path / "parts/ema/step-000006-0.1.safetensors"))


def test_snapshots_past_the_checkpoint_go(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "run", max_steps=3)
    run_tiny(tiny_dataset, tmp_path / "other", max_steps=5)
    later = tmp_path / "other/ema/step-000005-0.1.safetensors"
    later.rename(tmp_path / "run/ema" / later.name)
    run_tiny(tiny_dataset, tmp_path / "run", resume=True, max_steps=4)
    assert sorted({snapshot.step for snapshot in list_snapshots(tmp_path / "run")}) == [2, 3, 4]


def test_command_exports_a_generator(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "run")
    arguments = ["ema", str(tmp_path / "run"), "--std", "0.2", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "up to step 6 with std 0.2" in result.output
    found = dict(load_generator(tmp_path / "out").network.named_parameters())
    for name, tensor in load_file(tmp_path / "run/ema/step-000006-0.2.safetensors").items():
        torch.testing.assert_close(found[name].detach(), tensor, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "out/generator.json").read_text())["kind"] == "semantic_diffusion"
    for extra, message in (
        (["--step", "5"], "no snapshot of step 5; available: 2, 4, 6"),
        (["--std", "0.5"], "at most 0.289"),
    ):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / "none"), *extra])
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "none").exists()

"""Training as ISDM does it: learned variance, loss-aware timesteps, best epoch, patience."""

import json

import pytest
import torch
from safetensors.torch import load_file

from steelgen.config.base import parse_config
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.diffusion.timesteps import LossHistory
from steelgen.generators.families import load_generator
from steelgen.training.loop import finetune, train
from steelgen.training.meter import EpochTracker
from tests.conftest import tiny_train_config


class Silent:
    def on_start(self, first_step, last_step):
        pass

    def on_step(self, step, values):
        pass

    def on_event(self, message):
        pass


def run_tiny(dataset, run_dir, resume=False, patience_steps=None, **options):
    values = tiny_train_config(dataset, run_dir, **options)
    values["selection"] = {"criterion": "train_epoch_loss", "patience_steps": patience_steps}
    values["generator"]["unet"]["learn_sigma"] = True
    values["generator"]["noise"] = {"num_train_timesteps": 4, "prediction_type": "epsilon", "zero_terminal_snr": False}
    values["preview"]["num_images"] = 0
    return train(parse_config(values, TrainConfig), Silent(), resume)


OPTIONS = {
    "train_batch_size": 4,
    "timestep_sampling": "loss_second_moment",
    "checkpoint_every": 6,
}


def test_resume_is_bit_identical_with_all_of_it(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "whole", max_steps=18, **OPTIONS)
    run_tiny(tiny_dataset, tmp_path / "parts", max_steps=12, **OPTIONS)
    run_tiny(tiny_dataset, tmp_path / "parts", resume=True, max_steps=18, **OPTIONS)
    folders = [tmp_path / name / "checkpoints" / "step-000018" for name in ("whole", "parts")]
    for name in ("weights", "average", "optimizer"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in folders)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    states = [json.loads((folder / "training.json").read_text()) for folder in folders]
    assert states[0] == states[1]
    history = states[0]["progress"]["trainable"]["loss_history"]
    assert sum(map(len, history)) == 40  # 72 losses, the latest 10 of each timestep


def test_the_best_epoch_is_kept_alone(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    run_tiny(tiny_dataset, run, max_steps=12, **OPTIONS)
    losses = {
        row["step"]: row["train_epoch_loss"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "train_epoch_loss" in row
    }
    assert len(losses) >= 2
    best = json.loads((run / "checkpoints" / "step-000012" / "training.json").read_text())["progress"]["best"]
    assert (best["best_step"], best["best_value"]) == min(losses.items(), key=lambda item: item[1])
    assert load_generator(run / "best").network.config.learn_sigma
    assert not list(run.glob("best*"))[1:]


def test_patience_ends_training(tiny_dataset, tmp_path):
    result = run_tiny(tiny_dataset, tmp_path / "run", max_steps=400, learning_rate=1e-9, patience_steps=8)
    assert result.stopped_by == "patience_steps"
    assert result.global_step < 400
    assert result.export is not None


def test_finetuning_goes_on_where_the_run_was(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "whole", max_steps=6, **{**OPTIONS, "timestep_sampling": "even"})
    run_tiny(tiny_dataset, tmp_path / "first", max_steps=3, **{**OPTIONS, "timestep_sampling": "even"})
    values = tiny_train_config(
        tiny_dataset, tmp_path / "second", max_steps=6, **{**OPTIONS, "timestep_sampling": "even"}
    )
    values |= {"checkpoint": str(tmp_path / "first"), "continue_training": True, "preview": {"num_images": 0}}
    values.pop("generator")
    finetune(parse_config(values, FinetuneConfig), Silent())
    one, other = (
        load_file(tmp_path / name / "checkpoints" / "step-000006" / "weights.safetensors")
        for name in ("whole", "second")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_timesteps_of_large_loss_come_more_often_and_weigh_less():
    history = LossHistory(4, length=2)
    fractions = (torch.arange(1000) + 0.5) / 1000
    timesteps, weights = history.draw(fractions)
    assert torch.bincount(timesteps).tolist() == [250] * 4
    assert weights.unique().tolist() == [1]
    for losses in ([1.0, 1.0, 1.0, 5.0], [1.0, 1.0, 1.0, 5.0]):
        history.record(torch.arange(4), torch.tensor(losses))
    history.absorb(lambda tensor: tensor)
    assert history.compute_probabilities().tolist() == pytest.approx(
        [0.999 / 8 + 0.00025] * 3 + [0.999 * 5 / 8 + 0.00025]
    )
    timesteps, weights = history.draw(fractions)
    assert torch.bincount(timesteps)[3].item() == pytest.approx(625, abs=2)
    assert weights.mean().item() == pytest.approx(1, abs=0.01)
    again = LossHistory(4, length=2)
    again.restore(history.state())
    assert torch.equal(again.compute_probabilities(), history.compute_probabilities())


def test_epochs_that_end_within_a_step():
    tracker = EpochTracker(epoch_crops=5)
    ended = []
    for step, loss in enumerate([4.0, 2.0, 3.0, 3.0, 3.0], start=1):
        tracker.add(torch.full((3,), loss))
        ended.append(tracker.end_step(step, 3 * step))
    assert ended == [False, True, False, True, True]
    assert tracker.read(lambda tensor: tensor) == {2: 3.0, 4: 3.0, 5: 3.0}
    assert tracker.read(lambda tensor: tensor) == {}


def test_epochs_of_several_processes_are_one():
    """A checkpoint holds the sum of all, from which a resumed run goes on as an undisturbed one."""
    trackers = [EpochTracker(epoch_crops=8, is_main=is_main) for is_main in (True, False)]

    def gather(tensors):
        return torch.cat(tensors)

    trackers[0].add(torch.tensor([1.0, 2.0]))
    trackers[1].add(torch.tensor([3.0, 6.0]))
    pairs = [tracker._pair()[None] for tracker in trackers]
    for tracker in trackers:
        tracker.collect(lambda own: gather(pairs))
    assert trackers[0].state() == {"epoch": 0, "sum": 12.0, "count": 4}
    resumed = [EpochTracker(epoch_crops=8, is_main=is_main) for is_main in (True, False)]
    for tracker in resumed:
        tracker.restore(trackers[0].state())
    for both in (trackers, resumed):
        both[0].add(torch.tensor([4.0, 0.0]))
        both[1].add(torch.tensor([0.0, 0.0]))
        assert [tracker.end_step(2, 8) for tracker in both] == [True, True]
        closed = [torch.stack([pair for _, pair in tracker._closed])[None] for tracker in both]
        assert both[0].read(lambda own, closed=closed: gather(closed)) == {2: 2.0}

"""Validation, measurement, the choice of best/, stopping early, and the resumption of all that."""

import json
import os
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators import Drawn
from steelgen.generators.families import load_generator
from steelgen.sampling.sample import sample
from steelgen.training.loop import train
from steelgen.training.meter import average_by_bin
from steelgen.training.selection import BestTracker, CopyWatch
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.training.test_crashes import fork_training
from tests.training.test_loop import Recorder


def run_tiny(dataset, run_dir, resume=False, sections=(), **options):
    values = tiny_train_config(dataset, run_dir, **options)
    values["preview"]["num_images"] = 0
    values["validation"] = {"every": 2, "crops": 8, "bins": 4}
    values["measurement"] = {"every": None}
    for name, section in dict(sections).items():
        values[name] = {**values.get(name, {}), **section}
    recorder = Recorder()
    result = train(parse_config(values, TrainConfig), recorder, resume)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return result, {row["step"]: row for row in rows}, recorder


MEASURE = {"measurement": {"every": 2, "num_images": 4, "searched_images": 2, "solver": {"num_inference_steps": 1}}}


@pytest.fixture
def few_features(monkeypatch):
    """Mean gray levels of a 4 x 4 grid in place of EfficientNet's features, which take seconds to compute."""
    from steelgen.evaluation.features import FeatureExtractor
    from steelgen.training import measurement

    def pool(images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

    extractor = FeatureExtractor("grid", pool, "grid")
    monkeypatch.setattr(measurement, "build_extractor", lambda kind, device: extractor)


def test_validation_is_repeatable_and_told_by_bin(tiny_dataset, tmp_path):
    """With a learning rate of nothing every validation sees the same network and must give the same numbers."""
    _, rows, _ = run_tiny(tiny_dataset, tmp_path / "run", max_steps=4, learning_rate=1e-30, ema_decay=0.0)
    names = ["val_loss", *(f"val_loss_bin_{number}" for number in range(4))]
    assert "val_loss" not in rows[1]
    assert [rows[2][name] for name in names] == [rows[4][name] for name in names]
    # Two crops a bin: the mean of the bins is the mean of all.
    assert np.mean([rows[2][name] for name in names[1:]]) == pytest.approx(rows[2]["val_loss"])
    assert any(f"loss_bin_{number}" in rows[1] for number in range(4))
    with Image.open(tmp_path / "run/curves.png") as picture:
        assert picture.size == (1320, 440)  # losses and gradient norm


def test_validation_changes_nothing_in_training(tiny_dataset, tmp_path, few_features):
    run_tiny(tiny_dataset, tmp_path / "with", sections=MEASURE, max_steps=4)
    run_tiny(tiny_dataset, tmp_path / "without", sections={"validation": {"split": None}}, max_steps=4)
    one, other = (load_file(tmp_path / n / "checkpoints/step-000004/weights.safetensors") for n in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_validation_sees_the_held_out_split(tmp_path):
    """Other training images, same validation images: the loss of an untrained network is the same."""
    losses = []
    for name, extra in (("few", 4), ("many", 6)):
        dataset = write_tiny_dataset(tmp_path / name, splits=(("val", 2), ("train", extra)))
        sections = {"generator": {"noise": {"num_train_timesteps": 100, "standardize": False}}}
        options = dict(max_steps=2, learning_rate=1e-30, ema_decay=0.0)
        losses.append(run_tiny(dataset, tmp_path / f"run-{name}", sections=sections, **options)[1][2]["val_loss"])
    assert losses[0] == losses[1]
    with pytest.raises(InputError, match=r"validation\.split 'train' is the training split"):
        run_tiny(tmp_path / "few", tmp_path / "refused", sections={"validation": {"split": "train"}})


def test_best_is_the_lowest_validation_loss_and_samples(tiny_dataset, tmp_path):
    _, rows, recorder = run_tiny(tiny_dataset, tmp_path / "run", max_steps=6, learning_rate=0.05, ema_decay=0.0)
    losses = {step: row["val_loss"] for step, row in rows.items() if "val_loss" in row}
    step = min(losses, key=losses.get)
    chosen = json.loads((tmp_path / "run/best/selection.json").read_text())
    assert chosen == {"criterion": "val_loss", "value": losses[step], "step": step}
    assert any(f"best so far: val_loss {losses[step]:.4g} at step {step}" in event for event in recorder.events)
    best, last = (load_generator(tmp_path / "run" / name).network.state_dict() for name in ("best", "export"))
    assert all(torch.equal(best[name], last[name]) for name in best) == (step == 6)
    values = {
        "generator": str(tmp_path / "run/best"),
        "output_dir": str(tmp_path / "samples"),
        "mask_source": {"kind": "split", "dataset": str(tiny_dataset), "split": "test"},
        "num_samples": 1,
        "solver": {"num_inference_steps": 1},
    }
    sample(parse_config(values, SampleConfig))
    assert (tmp_path / "samples/samples/000000.png").is_file()


@pytest.mark.parametrize("criterion", ["val_loss", "kid", "train_epoch_loss"])
def test_best_and_patience_resume_bit_identically(tiny_dataset, tmp_path, few_features, criterion):
    sections = {**MEASURE, "selection": {"criterion": criterion, "patience_steps": 100}}
    options = dict(learning_rate=0.02, sections=sections)
    run_tiny(tiny_dataset, tmp_path / "whole", max_steps=7, **options)
    run_tiny(tiny_dataset, tmp_path / "parts", max_steps=5, **options)
    run_tiny(tiny_dataset, tmp_path / "parts", resume=True, max_steps=7, **options)
    folders = [tmp_path / name for name in ("whole", "parts")]
    states = [json.loads((folder / "checkpoints/step-000007/training.json").read_text()) for folder in folders]
    assert states[0] == states[1]
    assert states[0]["progress"]["best"]["criterion"] == criterion
    assert states[0]["progress"]["best"]["best_step"] > 0
    for name in ("best/selection.json", "best/unet/diffusion_pytorch_model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_patience_on_the_validation_loss(tiny_dataset, tmp_path):
    """The loss of a network that does not change never gets better than at first."""
    sections = {"selection": {"patience_steps": 4}}
    result, _, _ = run_tiny(
        tiny_dataset, tmp_path / "run", max_steps=50, learning_rate=1e-30, ema_decay=0.0, sections=sections
    )
    assert (result.stopped_by, result.global_step) == ("patience_steps", 6)  # best at 2, then 4 and 6
    assert result.export is not None


def test_patience_counts_from_the_best_value():
    tracker = BestTracker("kid", patience_steps=4)
    kept = [tracker.offer(step, {"kid": value}) for step, value in ((2, 3.0), (4, float("nan")), (6, 2.0), (8, 2.0))]
    assert kept == [True, False, True, False]
    assert not tracker.out_of_patience
    again = BestTracker("kid", patience_steps=4)
    again.restore(json.loads(json.dumps(tracker.state())), step=8)
    assert not again.offer(9, {"val_loss": 0.0})
    assert not again.offer(10, {"kid": 2.5})
    assert again.out_of_patience
    other = BestTracker("val_loss", patience_steps=4)
    other.restore(tracker.state(), step=8)
    assert (other.best_value, other.best_step, other.out_of_patience) == (None, 8, False)


def test_copies_begin_once():
    watch = CopyWatch(max_copies=0.1, checks=2)
    shares = [0.2, 0.1, 0.2, 0.3, 0.4]
    assert [watch.offer(step, share) for step, share in enumerate(shares)] == [False, False, False, True, False]
    assert watch.detected_at == 3


def test_measurement_tells_copies_and_stops(tiny_dataset, tmp_path, few_features, monkeypatch):
    """A generator that hands out pieces of training micrographs."""
    from steelgen.data.crops import CropDataset, image_to_tensor, load_micrographs
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion

    rng = np.random.default_rng(0)
    for path in tiny_dataset.glob("*/images/*.png"):  # every place of these is like no other
        Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8).repeat(8, 0).repeat(8, 1)).save(path)
    train_split = load_micrographs(tiny_dataset, "train")

    def copy(self, request):
        crops = CropDataset(train_split, self.geometry, seed=7, augment=True)
        return Drawn(torch.stack([image_to_tensor(crops.cut(seed)[0]) for seed in request.seeds]))

    monkeypatch.setattr(SemanticDiffusion, "draw", copy)
    sections = {"measurement": {**MEASURE["measurement"], "searched_images": 4}, "selection": {"stop_at_copies": True}}
    result, rows, recorder = run_tiny(tiny_dataset, tmp_path / "run", sections=sections, max_steps=9)
    assert (result.stopped_by, result.global_step) == ("stop_at_copies", 4)
    assert rows[2]["copies"] >= 0.25
    assert rows[2]["copies_floor"] == 0
    assert rows[2]["copy_ratio"] < 0.5
    assert rows[2]["kid"] == rows[4]["kid"]
    lines = [event for event in recorder.events if "copies training images" in event]
    assert len(lines) == 1
    assert "at step 4" in lines[0]
    assert (tmp_path / "run/previews/copies-000004.png").is_file()


def test_kid_falls_when_images_are_drawn_from_the_held_out_ones(tiny_dataset, tmp_path, few_features, monkeypatch):
    from steelgen.data.crops import CropDataset, image_to_tensor, load_micrographs
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion

    def draw(self, request):
        crops = CropDataset(load_micrographs(tiny_dataset, "val"), self.geometry, seed=0, augment=False)
        shown = torch.stack([image_to_tensor(crops.cut(seed)[0]) for seed in request.seeds])
        return Drawn(shown if self.drawn else -shown)

    monkeypatch.setattr(SemanticDiffusion, "draw", draw)
    monkeypatch.setattr(SemanticDiffusion, "drawn", False, raising=False)
    values = []
    for drawn in (False, True):
        monkeypatch.setattr(SemanticDiffusion, "drawn", drawn)
        sections = {**MEASURE, "selection": {"criterion": "kid"}}
        _, rows, _ = run_tiny(tiny_dataset, tmp_path / str(drawn), sections=sections, max_steps=2)
        values.append(rows[2])
    assert values[1]["kid"] <= values[1]["kid_floor"] < values[0]["kid"]
    assert values[1]["fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-6)


def test_without_a_split_to_hold_out(tmp_path):
    dataset = write_tiny_dataset(tmp_path / "data", splits=(("train", 4),))
    run_tiny(dataset, tmp_path / "run", max_steps=2)
    assert not (tmp_path / "run/best").exists()
    with pytest.raises(InputError, match=r"has no split 'val', which selection\.criterion 'val_loss' needs"):
        run_tiny(dataset, tmp_path / "a", sections={"selection": {"criterion": "val_loss"}})
    with pytest.raises(InputError, match=r"needs selection\.criterion train_epoch_loss"):
        run_tiny(dataset, tmp_path / "b", sections={"selection": {"patience_steps": 5}})


def test_losses_by_bin_by_hand():
    losses, positions = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.0, 0.24, 0.5, 0.99])
    assert average_by_bin("loss", losses, positions, 4) == {"loss_bin_0": 1.5, "loss_bin_2": 3.0, "loss_bin_3": 5.0}


def test_two_processes_judge_like_one_and_the_first_alone_writes(tiny_dataset, tmp_path, few_features):
    """On gloo, half the batch each; without dropout, which is per process by nature."""

    def configure(name, batch):
        values = tiny_train_config(tiny_dataset, tmp_path / name, max_steps=4, train_batch_size=batch)
        values["generator"]["unet"]["dropout"] = 0.0
        values |= {"validation": {"every": 2, "crops": 9, "bins": 4}, "selection": {"criterion": "kid"}}
        values["measurement"] = {**MEASURE["measurement"], "num_images": 5}  # neither 9 nor 5 divides by 2
        values["train"].update(checkpoint_every=2, ema_power_stds=[0.1])
        return parse_config(values, TrainConfig)

    def record_writes():
        """Appends every file or folder below tmp_path that this process makes, renames or removes to its log."""

        def note(event, arguments):
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            changes |= event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if changes and str(tmp_path) in str(arguments[0]):
                print("wrote", arguments[0], flush=True)

        sys.addaudithook(note)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    children = [fork_training(configure("one", 4), tmp_path / "log")]
    for rank in ("0", "1"):
        environment = {**meet, "RANK": rank, "LOCAL_RANK": rank}
        children.append(fork_training(configure("two", 2), logs[int(rank)], environment, record_writes))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0], "".join(log.read_text() for log in logs)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4]
    judged = [name for name in one[1] if name.startswith(("val_loss", "kid", "fd_", "cop", "train_epoch"))]
    assert {"val_loss", "val_loss_bin_0", "val_loss_bin_3", "kid", "fd_efficientnet_lite0", "copies"} < {*judged}
    for row in (1, 3):
        assert {name: two[row][name] for name in judged} == pytest.approx(
            {name: one[row][name] for name in judged}, rel=1e-3, abs=1e-4
        )
    for row in range(4):  # of the crops of both processes
        logged = [{name: value for name, value in each[row].items() if name.startswith("loss")} for each in (two, one)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-3, abs=1e-4)
    said, other = (log.read_text() for log in logs)
    assert f"saved {tmp_path / 'two'}/checkpoints/step-000004" in said
    assert f"wrote {tmp_path / 'two'}/metrics.jsonl" in said
    assert "wrote" not in other
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

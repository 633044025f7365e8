"""The loop: exact resume, stopping, EMA, fine-tuning, two processes like one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steelgen.cli.app import main
from steelgen.config.base import parse_config
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.errors import InputError
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.training.ema import WeightAverage
from steelgen.training.loop import finetune, train
from steelgen.training.setup import count_steps
from tests.conftest import tiny_train_config
from tests.forking import fork, wait


class Recorder:
    """An observer that remembers; `at_step` is called with each step."""

    def __init__(self, at_step=lambda step: None):
        self.values, self.events, self.at_step = {}, [], at_step

    def on_start(self, first_step, last_step):
        self.first_step, self.last_step = first_step, last_step

    def on_step(self, step, values):
        self.values[step] = values
        self.at_step(step)

    def on_event(self, message):
        self.events.append(message)


def run_tiny(dataset, run_dir, resume=False, observer=None, **options):
    config = parse_config(tiny_train_config(dataset, run_dir, **options), TrainConfig)
    return train(config, observer or Recorder(), resume)


def load_weights(run_dir, step):
    folder = Path(run_dir) / "checkpoints" / f"step-{step:06d}"
    return {
        f"{name}:{key}": tensor
        for name in ("weights", "average", "optimizer")
        for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_same_checkpoints(first, second):
    """Weights, averages and moments of two checkpoint folders are equal bit for bit."""
    ours, theirs = ({file.name: load_file(file) for file in folder.glob("*.safetensors")} for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert_same_tensors(tensors, theirs[name])


def test_run_folder_is_complete(tiny_dataset, tmp_path):
    result = run_tiny(tiny_dataset, tmp_path / "run", max_steps=3)
    run = tmp_path / "run"
    assert result.global_step == 3
    assert result.stopped_by == "max_steps"
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "export/model_index.json",
        "export/generator.json",
    ):
        assert (run / name).is_file(), name
    assert {path.name for path in (run / "previews").iterdir()} == {"step-000000.png", "step-000003.png"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert any(path.name.startswith("events.out") for path in (run / "tensorboard").iterdir())
    resolved = parse_config(json.loads((run / "config.json").read_text()), TrainConfig)
    assert resolved.train.max_steps == 3


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_resume_is_bit_identical(tiny_dataset, tmp_path, stop_at):
    """2N steps equal N, stop, the rest: with dropout, mask dropout and accumulation, stopped in mid-epoch."""
    options = dict(max_steps=6, gradient_accumulation_steps=2, mask_dropout=0.5, lr_scheduler="cosine")
    run_tiny(tiny_dataset, tmp_path / "whole", **options)

    def stop(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    result = run_tiny(tiny_dataset, tmp_path / "parts", observer=Recorder(stop), **options)
    assert result.stopped_by == "SIGTERM"
    assert result.global_step == stop_at
    assert result.export is None
    run_tiny(tiny_dataset, tmp_path / "parts", resume=True, **options)
    assert_same_tensors(load_weights(tmp_path / "whole", 6), load_weights(tmp_path / "parts", 6))
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_number_of_workers_changes_nothing(tiny_dataset, tmp_path):
    for workers in (0, 2):
        values = tiny_train_config(tiny_dataset, tmp_path / f"workers{workers}", max_steps=2)
        values["data"]["num_workers"] = workers
        train(parse_config(values, TrainConfig), Recorder())
    assert_same_tensors(load_weights(tmp_path / "workers0", 2), load_weights(tmp_path / "workers2", 2))


def test_accumulation_equals_a_larger_batch(tiny_dataset, tmp_path):
    """Without dropout in the network two half batches give the whole batch's gradient."""
    for name, batch, accumulation in (("large", 4, 1), ("small", 2, 2)):
        values = tiny_train_config(
            tiny_dataset,
            tmp_path / name,
            max_steps=2,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        values["generator"]["unet"]["dropout"] = 0.0
        train(parse_config(values, TrainConfig), Recorder())
    large, small = (
        load_file(tmp_path / name / "checkpoints/step-000002/weights.safetensors") for name in ("large", "small")
    )
    for name in large:
        torch.testing.assert_close(large[name], small[name], atol=2e-5, rtol=1e-3)


def test_training_learns_and_the_mask_steers(tiny_dataset, tmp_path):
    """Gray level follows the mask in the tiny set; after a minute's training it must in drawn images too."""
    observer = Recorder()
    run_tiny(
        tiny_dataset,
        tmp_path / "run",
        observer=observer,
        max_steps=300,
        train_batch_size=8,
        learning_rate=3e-3,
        ema_decay=0.95,
        log_every=20,
    )
    losses = [values["loss"] for values in observer.values.values() if values]
    assert losses[-1] < 0.5 * losses[0]
    generator = load_generator(tmp_path / "run")
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[:, :, 8:] = 2
    config = parse_config(tiny_train_config(tiny_dataset, "x"), TrainConfig)
    images = draw_for_masks(
        generator, masks, [0, 1, 2, 3], config.preview.solver.model_copy(update={"num_inference_steps": 10})
    )
    left, right = images[..., :6].mean(), images[..., 10:].mean()
    # Classes 0 and 2 are 60 and 180 of 255 in the real images.
    assert left.item() == pytest.approx(60 / 127.5 - 1, abs=0.25)
    assert right.item() == pytest.approx(180 / 127.5 - 1, abs=0.25)


def test_old_checkpoints_are_removed(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "run", max_steps=5, checkpoint_every=1, keep_checkpoints=2)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "step-000004",
        "step-000005",
    ]


def test_max_minutes_ends_and_exports(tiny_dataset, tmp_path):
    result = run_tiny(tiny_dataset, tmp_path / "run", max_steps=10**6, max_minutes=0.02)
    assert result.stopped_by == "max_minutes"
    assert (result.export / "generator.json").is_file()


def test_count_steps_of_epochs():
    options = parse_config(
        {"max_epochs": 3, "train_batch_size": 4, "gradient_accumulation_steps": 2},
        TrainConfig.model_fields["train"].annotation,
    )
    assert count_steps(options, epoch_crops=20) == 8  # ceil(60 / 8)
    assert count_steps(options, epoch_crops=20, num_processes=2) == 4


def test_moving_average_by_hand():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    average = WeightAverage(network, decay=0.9)
    torch.nn.init.constant_(network.weight, 2.0)
    average.update(step=1)  # warm-up: decay (1 + 1) / (10 + 1)
    assert average.state_dict()["weight"].item() == pytest.approx(2 - 2 / 11)
    average.update(step=1000)  # decay 0.9
    expected = 0.9 * (2 - 2 / 11) + 0.1 * 2
    with average.applied():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 2.0


def test_moving_average_without_warmup_is_the_geometric_sum():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    average = WeightAverage(network, decay=0.9, warmup=False)
    for step, weight in enumerate((2.0, 3.0), start=1):
        torch.nn.init.constant_(network.weight, weight)
        average.update(step)
    assert average.state_dict()["weight"].item() == pytest.approx(0.9**2 * 1 + 0.1 * 0.9 * 2 + 0.1 * 3)


def finetune_config(tiny_dataset, tmp_path, **data):
    values = tiny_train_config(tiny_dataset, tmp_path / "tuned", max_steps=2, mask_dropout=0.8)
    del values["generator"]
    values["data"].update(data)
    return parse_config({**values, "checkpoint": str(tmp_path / "run")}, FinetuneConfig)


def test_finetune_starts_from_the_checkpoint(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "run", max_steps=2)
    config = finetune_config(tiny_dataset, tmp_path)
    config.train.learning_rate = 1e-12
    finetune(config, Recorder())
    start = load_file(tmp_path / "run/export/unet/diffusion_pytorch_model.safetensors")
    tuned = load_file(tmp_path / "tuned/checkpoints/step-000002/weights.safetensors")
    for name in start:
        torch.testing.assert_close(start[name], tuned[name], atol=1e-6, rtol=1e-5)


def test_used_run_folder_and_other_architecture_are_refused(tiny_dataset, tmp_path):
    run_tiny(tiny_dataset, tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match="already in use"):
        run_tiny(tiny_dataset, tmp_path / "run", max_steps=1)
    values = tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=2)
    values["generator"]["unet"]["spade_channels"] = 12
    with pytest.raises(InputError, match=r"generator\.unet\.spade_channels was 8, is now 12"):
        train(parse_config(values, TrainConfig), Recorder(), resume=True)
    with pytest.raises(InputError, match=r"another architecture.*\(8, 3, 3, 3\) in it, \(12, 3, 3, 3\)"):
        train(parse_config(values, TrainConfig), Recorder(), resume=True, allow_changed=["generator.unet"])


def test_two_processes_equal_one_with_twice_the_batch(tiny_dataset, tmp_path):
    """On gloo; the network has no dropout here, which is per process by nature."""
    for name, batch in (("one", 4), ("two", 2)):
        values = tiny_train_config(tiny_dataset, tmp_path / name, max_steps=2, train_batch_size=batch)
        values["generator"]["unet"]["dropout"] = 0.0
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for name, count in (("one", "1"), ("two", "2")):
        subprocess.run(
            [*command, count, "-m", "steelgen", "train", "-c", str(tmp_path / f"{name}.json")],
            check=True,
            capture_output=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
            timeout=180,
        )
    one, two = (load_file(tmp_path / name / "checkpoints/step-000002/weights.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3)


def test_accelerate_that_starts_one_process_for_two_is_refused(tiny_dataset, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(tiny_train_config(tiny_dataset, tmp_path / "run")))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "steelgen"]
    done = subprocess.run(
        [*launch, "train", "-c", str(tmp_path / "train.json")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("steelgen: ")]
    assert len(said) == 1
    assert "accelerate launch: several processes were requested, but it starts only one on CPUs" in said[0]
    assert "python -m torch.distributed.run --standalone --nproc_per_node N -m steelgen" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_the_command_saves_and_leaves_cleanly(tiny_dataset, tmp_path, number):
    values = tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=10**6)
    (tmp_path / "train.json").write_text(json.dumps(values))
    out, err = tmp_path / "out", tmp_path / "err"

    def command():
        sys.argv = ["steelgen", "train", "-c", str(tmp_path / "train.json")]
        main()

    child = fork(command, out, err)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(child, number)
    assert wait(child) == 0, err.read_text()
    assert "Traceback" not in err.read_text()
    assert f"stopped by {number.name}" in out.read_text()
    assert (tmp_path / "run/checkpoints").is_dir()


def test_exploding_loss_names_step_micrographs_and_checkpoint(tiny_dataset, tmp_path, monkeypatch):
    from steelgen.generators.semantic_diffusion.training import SemanticDiffusionTraining

    compute_loss = SemanticDiffusionTraining.compute_loss

    def explode(self, phase, networks, batch, **options):
        found = compute_loss(self, phase, networks, batch, **options)
        exploded = found._replace(losses=found.losses * float("nan"))
        return exploded if int(batch["number"][0]) == 8 else found  # step 5 of two crops each

    monkeypatch.setattr(SemanticDiffusionTraining, "compute_loss", explode)
    with pytest.raises(InputError, match=r"step 5: the loss is nan in a batch from train\d.*step-000004") as caught:
        run_tiny(tiny_dataset, tmp_path / "run", max_steps=20, checkpoint_every=2, log_every=10)
    assert "learning_rate" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())[-1] == "step-000004"

"""DCGAN, two networks in two phases: through the command line, killed in either phase, by two processes, to the end."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import config_to_json, parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.evaluation.evaluate import evaluate
from steelgen.generators import DrawRequest
from steelgen.generators.families import build_trainable, load_generator
from steelgen.generators.gan.training import GanTraining
from steelgen.models.dcgan import DcganDiscriminator, DcganGenerator
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.training.batch_size import take_steps
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.runs import invoke, load_run, run_killed, run_two_processes
from tests.training.test_loop import Recorder, assert_same_tensors


def gan_config(dataset, run_dir, **train):
    return {
        "run_dir": str(run_dir),
        "data": {"dataset": str(dataset), "image_size": 16, "crop_size": 24},
        "generator": {"kind": "gan", "latent_dim": 8, "base_channels": 8},
        "train": {
            "max_steps": 4,
            "train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "warmup_steps": 1,
            "checkpoint_every": 1,
            "log_every": 1,
            **train,
        },
        "preview": {"every": 2, "num_images": 3},
        "measurement": {"every": 2, "num_images": 6, "searched_images": 2},
    }


def write_config(path, values):
    path.write_text(json.dumps(values))
    return str(path)


def test_resolved_configs_run_again(tmp_path):
    """They hold the defaults of sections that do not apply to this kind."""
    dataset = write_tiny_dataset(tmp_path / "tiny")
    config = parse_config(gan_config(dataset, tmp_path / "run", max_steps=1), TrainConfig)
    train(config, Recorder())
    again = json.loads((tmp_path / "run/config.json").read_text())
    assert parse_config(again, TrainConfig) == config
    values = {"generator": str(tmp_path / "run"), "output_dir": str(tmp_path / "s"), "mask_source": {"kind": "none"}}
    resolved = config_to_json(parse_config({**values, "num_samples": 1}, SampleConfig))
    assert (sample(parse_config(resolved, SampleConfig)) / "samples/000000.png").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset, and an undisturbed run on it through the command line."""
    folder = tmp_path_factory.mktemp("gan")
    dataset = write_tiny_dataset(folder / "tiny")
    done = invoke("train", "-c", write_config(folder / "gan.json", gan_config(dataset, folder / "run")))
    assert done.exit_code == 0, done.output
    return dataset, folder / "run", done.output


def test_a_run_leaves_what_every_run_leaves(whole):
    _, run_dir, said = whole
    assert "loss discriminator" in said
    assert "loss generator" in said
    names = {path.name for path in (run_dir / "checkpoints/step-000004").iterdir()}
    assert {"optimizer-discriminator.safetensors", "optimizer-generator.safetensors"} < names
    assert len(list((run_dir / "previews").glob("step-*.png"))) == 3
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_discriminator", "loss_generator", "grad_norm_generator", "score_real"} <= rows[0].keys()
    assert 0 < rows[0]["score_generated"] < 1
    assert "kid" in rows[1]
    assert "val_loss" not in rows[1]
    assert json.loads((run_dir / "best/selection.json").read_text())["criterion"] == "kid"


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_killed_in_either_phase_it_goes_on_bit_identically(whole, tmp_path, phase):
    dataset, undisturbed, _ = whole
    config = write_config(tmp_path / "gan.json", gan_config(dataset, tmp_path / "run"))
    # In the first of the two micro-batches of step 3.
    assert run_killed(GanTraining, phase, 5, "train", "-c", config) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))[-1] == "step-000002"
    resumed = invoke("train", "-c", config, "--resume", "auto")
    assert resumed.exit_code == 0, resumed.output
    assert_same_tensors(load_run(undisturbed), load_run(tmp_path / "run"))


def test_two_processes_train_with_batch_norms_of_their_own(whole, tmp_path):
    """DDP must not copy the first process's statistics between the two passes of the discriminator."""
    dataset, undisturbed, _ = whole
    values = gan_config(dataset, tmp_path / "run", max_steps=4, checkpoint_every=4)
    run_two_processes("train", "-c", write_config(tmp_path / "gan.json", values))
    alone, together = load_run(undisturbed), load_run(tmp_path / "run")
    assert alone.keys() == together.keys()
    assert all(tensor.isfinite().all() for tensor in together.values())
    passes = [name for name in alone if name.endswith("num_batches_tracked")]
    assert passes
    assert all(torch.equal(alone[name], together[name]) for name in passes)
    # Twice the crops.
    assert sum(not torch.equal(alone[name], together[name]) for name in alone) > len(alone) / 2


def test_samples_are_drawn_replayed_and_evaluated(whole, tmp_path):
    dataset, run_dir, _ = whole
    values = {"generator": str(run_dir), "output_dir": str(tmp_path / "out"), "mask_source": {"kind": "none"}}
    config = write_config(tmp_path / "sample.json", {**values, "num_samples": 20, "batch_size": 7})
    done = CliRunner().invoke(app, ["sample", "-c", config])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"samples"}
    assert replay(tmp_path / "out/metadata.jsonl", 3)[1] is True
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/samples").glob("*.png"))]
    assert len({image.tobytes() for image in images}) == 20
    settings = {"generated": str(tmp_path / "out"), "dataset": str(dataset), "output_dir": str(tmp_path / "report")}
    quick = {
        "features": {"kinds": "tests.evaluation.test_features:mean_features"},
        "segmenter": {"steps": 2, "base_channels": 8, "num_levels": 1},
        "memorization": {"max_images": 2, "search_size": 8},
    }
    result = evaluate(parse_config({**settings, **quick, "num_real": 20}, EvaluateConfig))
    distances = [figure for figure in result["figures"] if figure["metric"].lower().startswith("kid")]
    assert distances
    assert all(figure["n"][0] == 20 and np.isfinite(figure["value"]) for figure in distances)


def test_what_it_cannot_do_is_one_line(whole, tmp_path):
    dataset, run_dir, _ = whole
    masks = {"kind": "split", "dataset": str(dataset), "split": "test"}
    values = {"generator": str(run_dir), "output_dir": str(tmp_path / "out"), "num_samples": 2}
    for change, message in [
        ({"mask_source": masks}, "the generator was trained without masks; use kind 'none'"),
        ({"mask_source": {"kind": "none"}, "solver": {"num_inference_steps": 4}}, "solver: not applicable"),
        (
            {"mask_source": {"kind": "none"}, "start_images": {"dataset": str(dataset)}},
            "start_images: not applicable",
        ),
    ]:
        result = CliRunner().invoke(app, ["sample", "-c", write_config(tmp_path / "s.json", {**values, **change})])
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "out").exists()
    for section, change, message in [
        ("data", {"image_size": 24}, "image_size 24: must be a power of two"),
        ("preview", {"solver": {"num_inference_steps": 3}}, r"preview\.solver: not applicable to generator\.kind gan"),
        ("train", {"mask_dropout": 0.5}, "diffusion: not applicable"),
        ("selection", {"criterion": "val_loss"}, "selection.criterion 'val_loss': not applicable"),
        ("train", {"gradient_checkpointing": True}, "gradient_checkpointing: not applicable"),
    ]:
        config = gan_config(dataset, tmp_path / "run")
        config[section] = {**config.get(section, {}), **change}
        with pytest.raises(InputError, match=message):
            train(parse_config(config, TrainConfig), Recorder())


def test_averages_carry_the_buffers_of_the_last_step(whole):
    """Batch norms of the export have the statistics of the network as trained, and averaged weights."""
    _, run_dir, _ = whole
    live = load_file(run_dir / "checkpoints/step-000004/weights.safetensors")
    drawn = load_file(run_dir / "export/weights.safetensors")
    buffers = {name for name in drawn if "running" in name or "num_batches" in name}
    assert buffers
    for name, value in drawn.items():
        same = torch.equal(value, live[f"generator.{name}"])
        assert same == (name in buffers), name
    assert drawn["norms.0.num_batches_tracked"] == 4 * 2 * 2  # steps, micro-batches, phases


def test_images_depend_on_their_seed_alone(whole):
    generator = load_generator(whole[1])
    together = generator.draw(DrawRequest([3, 4, 5])).images
    assert torch.equal(generator.draw(DrawRequest([4])).images[0], together[1])
    assert not torch.equal(together[0], together[1])
    assert together.abs().max() <= 1


def test_phases_leave_the_other_network_alone(whole, tmp_path):
    """The gradients of each phase against autograd on its formula, and none for the other network's parameters."""
    config = parse_config(gan_config(whole[0], tmp_path / "run"), TrainConfig)
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in range(4)])
    generate, judge = (trainable.networks[name] for name in ("generator", "discriminator"))
    bce = nn.functional.binary_cross_entropy_with_logits
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses
    real, fake = judge(batch["image"]), judge(generate(batch["latents"][:, 0]).detach())
    expected = bce(real, torch.ones(4), reduction="none") + bce(fake, torch.zeros(4), reduction="none")
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in generate.parameters())
    found = trainable.compute_loss(trainable.phases[1], trainable.networks, batch).losses
    expected = bce(judge(generate(batch["latents"][:, 1])), torch.ones(4), reduction="none")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("edge", [8, 32, 128])
def test_networks_fit_every_power_of_two(edge):
    """The paper's figure 1 at 64 px: 4x4 maps of 1,024 channels, halved at each doubling of the edge."""
    images = DcganGenerator(edge, 3, 10, 4)(torch.randn(2, 10))
    assert images.shape == (2, 3, edge, edge)
    assert DcganDiscriminator(edge, 3, 4)(images).shape == (2,)
    network = DcganGenerator(64, 3, 100, 128)
    assert [norm.num_features for norm in network.norms] == [1024, 512, 256, 128]


def test_the_batch_is_tuned_with_all_phases(whole, tmp_path):
    config = parse_config(gan_config(whole[0], tmp_path / "run"), TrainConfig)
    trial = take_steps(config, 4, torch.device("cpu"))
    assert trial.images_per_second > 0
    assert trial.memory_gib > 0

"""rvae through the command line: trained, killed and resumed, drawn from, walked in, described; what it refuses."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.data.crops import tensor_to_image
from steelgen.devices import randn_by_seed
from steelgen.errors import InputError
from steelgen.generators import DrawRequest
from steelgen.generators.describing import Describer
from steelgen.generators.families import build_trainable, load_generator
from steelgen.generators.manifold import draw_manifold, list_manifold_steps
from steelgen.generators.rvae.training import RvaeTraining
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.runs import invoke, load_run, run_killed
from tests.training.test_loop import Recorder, assert_same_tensors


def rvae_config(dataset, run_dir, generator=None, **train):
    section = {"kind": "rvae", "encoder_channels": 4, "decoder_channels": 8, "decoder_layers": 2, "kl_crops": 20}
    return {
        "run_dir": str(run_dir),
        "data": {"dataset": str(dataset), "image_size": 16, "crop_size": 24, "any_angle": True},
        "generator": {**section, **(generator or {})},
        "train": {
            "max_steps": 6,
            "train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "warmup_steps": 1,
            "learning_rate": 1e-3,
            "checkpoint_every": 1,
            "log_every": 1,
            **train,
        },
        "preview": {"every": 3, "num_images": 4},
        "validation": {"every": 2, "crops": 8},
        "measurement": {"every": None},
    }


def write_config(path, values):
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset, and an undisturbed run on it."""
    folder = tmp_path_factory.mktemp("rvae")
    dataset = write_tiny_dataset(folder / "tiny")
    done = invoke("train", "-c", write_config(folder / "rvae.json", rvae_config(dataset, folder / "run")))
    assert done.exit_code == 0, done.output
    return dataset, folder / "run"


def test_a_run_leaves_what_every_run_leaves(whole):
    _, run_dir = whole
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "kl_latents", "grad_norm"} <= rows[0].keys()
    assert np.isfinite(rows[1]["val_loss"])
    assert json.loads((run_dir / "best/selection.json").read_text())["criterion"] == "val_loss"
    preview = np.asarray(Image.open(run_dir / "previews/step-000006.png"))
    assert np.array_equal(preview, draw_manifold(load_generator(run_dir), 4))


def test_killed_it_goes_on_bit_identically(whole, tmp_path):
    dataset, undisturbed = whole
    config = write_config(tmp_path / "rvae.json", rvae_config(dataset, tmp_path / "run"))
    # In step 4 of 6, of two micro-batches each.
    phase = RvaeTraining.phases[0].name
    assert run_killed(RvaeTraining, phase, 8, "train", "-c", config) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))[-1] == "step-000003"
    resumed = invoke("train", "-c", config, "--resume", "auto")
    assert resumed.exit_code == 0, resumed.output
    assert_same_tensors(load_run(undisturbed), load_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("section", "channels"),
    [({"channels": "image"}, 1), ({"channels": "both", "scale_prior": 0.3}, 2), ({"invariant": False}, 1)],
)
def test_every_variant_learns(whole, tmp_path, section, channels):
    """The bound rises over 60 steps, and a saved one describes as it did."""
    values = rvae_config(whole[0], tmp_path / "run", section, max_steps=60, checkpoint_every=60, log_every=30)
    values["validation"]["every"] = 10
    train(parse_config(values, TrainConfig), Recorder())
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0] - 3
    generator = load_generator(tmp_path / "run")
    assert isinstance(generator, Describer)
    assert generator.network.decoder.out.out_features == channels
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8) if generator.sees_image else None
    islands = np.random.default_rng(1).random((3, 16, 16), np.float32) if generator.sees_island else None
    found = generator.describe(images, islands)
    assert found.latents.shape == (3, 2)
    assert (found.errors > 0).all()
    assert (found.scales == 1).all() == (generator.section.scale_prior == 0)


def test_the_weight_of_divergences_follows_the_crop_and_validation_has_all_of_it(whole, tmp_path):
    config = parse_config(rvae_config(whole[0], tmp_path / "run", {"kl_weight": 2.0}), TrainConfig)
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in (0, 5, 50)])
    found = generator.network(generator.stack_patches(batch), batch["noise"])
    divergence = found.kl_latents + found.kl_turn + found.kl_nuisances
    phase, networks = trainable.phases[0], trainable.networks
    trained = trainable.compute_loss(phase, networks, batch).losses
    weights = 2 * torch.tensor([0.0, 5 / 20, 1.0])
    torch.testing.assert_close(trained, weights * divergence - found.log_likelihood)
    validated = trainable.compute_loss(phase, networks, batch, validates=True).losses
    torch.testing.assert_close(validated, 2 * divergence - found.log_likelihood)


def test_patches_are_drawn_and_depend_on_their_seed_alone(whole, tmp_path):
    _, run_dir = whole
    values = {"generator": str(run_dir), "output_dir": str(tmp_path / "out"), "mask_source": {"kind": "none"}}
    done = invoke("sample", "-c", write_config(tmp_path / "s.json", {**values, "num_samples": 5, "batch_size": 3}))
    assert done.exit_code == 0, done.output
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/samples").glob("*.png"))]
    generator = load_generator(run_dir)
    alone = [tensor_to_image(generator.draw(DrawRequest([seed])).images[0]) for seed in range(5)]
    assert all(np.array_equal(image, expected) for image, expected in zip(images, alone, strict=True))
    assert {int(image[0, 0]) for image in images} == {128}


def test_interpolate_walks_in_the_latents(whole, tmp_path):
    _, run_dir = whole
    values = {"generator": str(run_dir), "output_dir": str(tmp_path / "unused"), "mask_source": {"kind": "none"}}
    config = write_config(tmp_path / "s.json", values)
    done = invoke("interpolate", "-c", config, "--frames", 5, "--seeds", "3,4", "--out", tmp_path / "walk.png")
    assert done.exit_code == 0, done.output
    strip = np.asarray(Image.open(tmp_path / "walk.png"))
    generator = load_generator(run_dir)
    for seed, frame in ((3, strip[:, :16]), (4, strip[:, -16:])):
        assert np.array_equal(frame, tensor_to_image(generator.draw(DrawRequest([seed])).images[0]))
    first, last = randn_by_seed((2,), (3, 4))
    halfway = generator.draw(DrawRequest([0], noise=((first + last) / 2)[None])).images[0]
    assert np.array_equal(strip[:, 36:52], tensor_to_image(halfway))


def test_the_manifold_is_laid_out_by_quantiles(whole):
    steps = list_manifold_steps(4)
    torch.testing.assert_close(torch.distributions.Normal(0.0, 1.0).cdf(steps), torch.tensor([1, 3, 5, 7]) / 8)
    generator = load_generator(whole[1])
    sheet = draw_manifold(generator, 4)
    corner = torch.stack([steps[0], steps[-1]])[None]  # left, and up
    drawn = tensor_to_image(generator.draw(DrawRequest([0], noise=corner)).images[0])
    assert np.array_equal(sheet[:48:3, :48:3, 0], drawn)


def test_what_it_cannot_do_is_one_line(whole, tmp_path):
    dataset, _ = whole
    for section, change, message in [
        ("data", {"image_size": 20}, "image_size 20: must be a multiple of 8"),
        ("data", {"crop_size": 48}, "crop_size 48 px exceeds micrograph"),
        ("data", {"unconditional": True}, "has no masks; generator.patches must be 'grid'"),
        ("generator", {"min_area": 5000}, "no islands of island, film with at least 5000 px"),
        ("generator", {"classes": ["carbide"]}, "'carbide' is not a class of tiny; known: matrix, island, film"),
        ("generator", {"patches": "instances"}, "has no instances/"),
        ("generator", {"patches": "grid", "classes": ["film"]}, "classes: not applicable to patches 'grid'"),
        ("generator", {"spacing": 9}, "spacing: not applicable to patches 'islands'"),
        ("preview", {"solver": {"num_inference_steps": 3}}, r"preview\.solver: not applicable"),
    ]:
        config = rvae_config(dataset, tmp_path / "run")
        config[section] = {**config[section], **change}
        with pytest.raises(InputError, match=message):
            train(parse_config(config, TrainConfig), Recorder())

"""The autoencoder of latent diffusion: losses, statistics, resuming, several processes, sampling."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from steelgen.config.base import config_to_json, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators import DrawRequest
from steelgen.generators.families import build_trainable, load_generator
from steelgen.models.autoencoder import LatentStatistics
from steelgen.sampling.sample import sample
from steelgen.training.batch_size import take_steps
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.generators.latent import autoencoder_config
from tests.generators.runs import load_run, run_two_processes
from tests.training.test_loop import Recorder, assert_same_tensors


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("autoencoder") / "tiny")


@pytest.fixture(scope="module")
def run(dataset):
    """An undisturbed run, whose discriminator starts after two steps."""
    folder = dataset.parent / "run"
    train(parse_config(autoencoder_config(dataset, folder), TrainConfig), Recorder())
    return folder


def prepare(dataset, generator=None, count=3, **options):
    config = parse_config({**autoencoder_config(dataset, "unused", generator), **options}, TrainConfig)
    built, micrographs = prepare_training(config)
    trainable = build_trainable(built, config)
    crops = build_crops(config, trainable, micrographs)
    return built, trainable, torch.utils.data.default_collate([crops[number] for number in range(count)])


def test_a_run_leaves_what_every_run_leaves(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = {"l1", "kl", "spectral", "cross_entropy"}
    assert all(parts | {"loss_codec"} <= row.keys() for row in rows)
    assert ["loss_discriminator" in row for row in rows] == [False, False, True, True]
    assert ["adversarial" in row for row in rows] == [False, False, True, True]
    assert "val_loss" in rows[1]
    assert "kid" in rows[3]
    assert json.loads((run / "best/selection.json").read_text())["criterion"] == "val_loss"
    shown = np.asarray(Image.open(run / "previews/step-000004.png"))
    assert shown.shape[0] > 2 * 128  # a row of original and reconstruction for each of two crops


def test_resumed_before_the_discriminator_starts_it_is_bit_identical(dataset, run, tmp_path):
    for steps in (2, 4):
        values = autoencoder_config(dataset, tmp_path / "run", max_steps=steps, checkpoint_every=1)
        train(parse_config(values, TrainConfig), Recorder(), resume=True)
    found = load_run(tmp_path / "run")
    assert any("optimizer-discriminator" in name for name in found)
    assert_same_tensors(load_run(run), found)


def test_two_processes_train_what_one_does_with_twice_the_batch(dataset, tmp_path):
    values = autoencoder_config(dataset, tmp_path / "one", train_batch_size=4, checkpoint_every=4)
    quiet = {"preview": {"num_images": 0}, "measurement": {"every": None}}
    train(parse_config({**values, **quiet}, TrainConfig), Recorder())
    values = autoencoder_config(dataset, tmp_path / "two", train_batch_size=2, checkpoint_every=4)
    (tmp_path / "config.json").write_text(json.dumps({**values, **quiet}))
    run_two_processes("train", "-c", tmp_path / "config.json")
    one, two = (load_file(tmp_path / name / "checkpoints/step-000004/weights.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        if "statistics" not in name:  # each process has those of its own crops
            torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_losses_are_those_of_torch(dataset):
    built, trainable, batch = prepare(dataset)
    batch["mask"][0, :8] = 255
    batch["mask"][2] = 255
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch)
    real = (batch["image"] - built.intensity[0]) / built.intensity[1]
    mean, log_variance = built.image_codec.vae.quant_conv(built.image_codec.vae.encoder(real)).chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.parts["kl"], divergence / 16**2)
    restored = built.image_codec.vae.decode(mean + posterior.scale * batch["noise"]).sample
    torch.testing.assert_close(
        found.parts["l1"], torch.stack([F.l1_loss(*pair) for pair in zip(restored, real, strict=True)])
    )
    one_hot = F.one_hot(batch["mask"].clamp(max=3), 4)[..., :3].permute(0, 3, 1, 2).float()
    logits = built.mask_codec(one_hot)
    for row in (0, 1):
        entropy = F.cross_entropy(logits[row : row + 1], batch["mask"][row : row + 1], ignore_index=255)
        torch.testing.assert_close(found.parts["cross_entropy"][row], entropy)
    assert found.parts["cross_entropy"][2] == 0
    section, parts = built.section, found.parts
    total = parts["l1"] + section.kl_weight * parts["kl"] + section.spectral_weight * parts["spectral"]
    torch.testing.assert_close(found.losses, total + parts["cross_entropy"])
    found.losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in built.image_codec.parameters())


def test_adversarial_losses_are_least_squares(dataset):
    """The codec wants the scores of reconstructions to be 1, the discriminator 0, and 1 for real images."""
    built, trainable, batch = prepare(dataset)
    codec, discriminator = trainable.phases
    before = trainable.compute_loss(codec, trainable.networks, batch)
    assert "adversarial" not in before.parts
    trainable.end_step(lambda tensor: tensor)
    trainable.steps = built.section.adversarial_start
    found = trainable.compute_loss(codec, trainable.networks, batch)
    real = built.standardize(batch["image"])
    fake, _ = built.image_codec(real, batch["noise"])
    scores = [trainable.networks["discriminator"](images) for images in (real, fake)]
    fooled = torch.stack([F.mse_loss(row, torch.ones_like(row)) for row in scores[1]])
    torch.testing.assert_close(found.losses - before.losses, built.section.adversarial_weight * fooled)
    judged = trainable.compute_loss(discriminator, trainable.networks, batch)
    wanted = [
        F.mse_loss(row, torch.full_like(row, goal))
        for goal, rows in zip((1.0, 0.0), scores, strict=True)
        for row in rows
    ]
    torch.testing.assert_close(judged.losses, (torch.stack(wanted[:3]) + torch.stack(wanted[3:])) / 2)
    judged.losses.sum().backward()
    assert all(parameter.grad is None for parameter in built.image_codec.parameters())
    validated = trainable.compute_loss(codec, trainable.networks, batch, validates=True)
    assert "adversarial" not in validated.parts


def test_flat_images_have_finite_gradients(dataset):
    built, trainable, batch = prepare(dataset)
    batch["image"] = torch.zeros_like(batch["image"])
    for parameter in built.image_codec.vae.decoder.conv_out.parameters():
        torch.nn.init.zeros_(parameter)  # its reconstruction is flat, too
    trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in built.image_codec.parameters())


def test_the_discriminator_rests_until_its_start(dataset, tmp_path):
    values = autoencoder_config(dataset, tmp_path / "run", {"adversarial_start": 3}, max_steps=4, checkpoint_every=1)
    values = {**values, "preview": {"num_images": 0}, "measurement": {"every": None}}
    values["train"]["keep_checkpoints"] = 4
    train(parse_config(values, TrainConfig), Recorder())
    weights = [
        load_file(tmp_path / f"run/checkpoints/step-00000{step}/weights.safetensors")["discriminator.convs.0.weight"]
        for step in (1, 3, 4)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_statistics_are_those_of_the_latents_and_undo_themselves():
    torch.manual_seed(0)
    statistics = LatentStatistics(3)
    shift, scale = torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1), torch.tensor([0.5, 3.0, 1.0]).view(1, 3, 1, 1)
    batches = [shift + scale * torch.randn(8, 3, 16, 16) for _ in range(40)]
    for batch in batches:
        statistics.update(batch)
    every = torch.cat(batches)
    torch.testing.assert_close(statistics.mean, every.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    standardized = statistics.standardize(every)
    assert standardized.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert abs(standardized.std() - 1) < 1e-4
    torch.testing.assert_close(statistics.restore(standardized), every)


def test_it_learns_to_keep_masks_and_standardized_latents(dataset, tmp_path):
    values = autoencoder_config(dataset, tmp_path / "run", max_steps=80, train_batch_size=8, learning_rate=1e-2)
    values |= {"preview": {"num_images": 0}, "measurement": {"every": None}, "validation": {"split": None}}
    values["train"] |= {"ema_decay": 0.9, "log_every": 20}
    train(parse_config(values, TrainConfig), Recorder())
    loaded = load_generator(tmp_path / "run")
    _, _, batch = prepare(dataset, count=16)
    drawn = loaded.reconstruct(batch["image"], batch["mask"])
    assert (drawn.masks == batch["mask"]).float().mean() > 0.95
    error = (drawn.images - batch["image"]).square().mean()
    assert error < 0.25 * batch["image"].var()
    for latents in (loaded.encode_images(batch["image"]), loaded.encode_masks(batch["mask"])):
        assert 0.7 < latents.std() < 1.4
        assert latents.mean().abs() < 0.3


@pytest.mark.parametrize("size", [(16, 16), (21, 19)])
def test_reconstructions_have_any_size_and_depend_on_no_batch(run, size):
    loaded = load_generator(run)
    images, masks = torch.linspace(-1, 1, 3 * size[0] * size[1]).view(3, 1, *size), torch.zeros(3, *size).long()
    whole = loaded.reconstruct(images, masks)
    assert whole.images.shape == images.shape
    assert whole.masks.shape == masks.shape
    assert loaded.encode_masks(masks).shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
    single = loaded.draw(DrawRequest([5], images=images[1:2])).images
    assert torch.equal(single, whole.images[1:2])


def test_images_are_sampled_as_reconstructions(dataset, run, tmp_path):
    masks = {"kind": "images", "folder": str(dataset / "test/images"), "masks": None}
    values = {"generator": str(run), "output_dir": str(tmp_path / "out"), "mask_source": masks, "num_samples": 2}
    sample(parse_config(config_to_json(parse_config(values, SampleConfig)), SampleConfig))
    originals = sorted((tmp_path / "out/images").glob("*.png"))
    image = np.asarray(Image.open(originals[0])).astype(np.float32) / 127.5 - 1
    drawn = load_generator(run).draw(DrawRequest([0], images=torch.from_numpy(image)[None, None])).images[0, 0]
    found = np.asarray(Image.open(tmp_path / "out/samples" / originals[0].name))
    assert np.abs(found - (drawn.numpy() + 1) * 127.5).max() <= 1


def test_without_masks_there_is_no_codec_of_masks(dataset, tmp_path):
    values = autoencoder_config(dataset, tmp_path / "run", {"adversarial_weight": 0}, max_steps=1)
    values["data"]["unconditional"] = True
    train(parse_config(values, TrainConfig), Recorder())
    loaded = load_generator(tmp_path / "run")
    assert loaded.mask_codec is None
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "l1"} <= row.keys()
    assert "cross_entropy" not in row


def test_the_largest_batch_is_found(dataset):
    config = parse_config(autoencoder_config(dataset, "unused"), TrainConfig)
    assert take_steps(config, 2, torch.device("cpu")).memory_gib is not None


def test_what_it_cannot_do_is_one_line(dataset, run, tmp_path):
    for section, change, message in [
        ("generator", {"downsample_factor": 3}, "downsample_factor"),
        ("generator", {"base_channels": 10}, "base_channels 10: must be a multiple of norm_groups 4"),
        ("generator", {"discriminator_layers": 3}, "image_size 16: must be at least 24"),
        ("data", {"image_size": 18}, "image_size 18: must be a multiple of generator.downsample_factor 4"),
        ("preview", {"solver": {"num_inference_steps": 3}}, r"preview\.solver: not applicable"),
    ]:
        values = autoencoder_config(dataset, tmp_path / "no", {"downsample_factor": 4})
        values[section] = {**values[section], **change}
        with pytest.raises(InputError, match=message):
            parse_config(values, TrainConfig)
    values = tiny_train_config(dataset, tmp_path / "no")
    values["generator"] = {**values["generator"], "kind": "autoencoders"}
    with pytest.raises(InputError, match=r"kind must be one of .*autoencoder"):
        parse_config(values, TrainConfig)
    source = {"kind": "none"}
    values = {"generator": str(run), "output_dir": str(tmp_path / "out"), "mask_source": source, "num_samples": 1}
    with pytest.raises(InputError, match="has no images, which generators of kind autoencoder need"):
        sample(parse_config(values, SampleConfig))
    with pytest.raises(InputError, match="images have 3 channels, the generator was trained with 1"):
        load_generator(run).draw(DrawRequest([0], images=torch.zeros(1, 3, 16, 16)))

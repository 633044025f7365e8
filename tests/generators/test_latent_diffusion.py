"""Diffusion of latents: losses against diffusers' scheduler, sampling by a network that knows the answer, resuming."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.folder import load_dataset_info, save_dataset_info
from steelgen.devices import randn_by_seed
from steelgen.errors import InputError
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.families import build_trainable, load_generator, open_network
from steelgen.generators.features import NOISE_SEED, DiffusionFeatures
from steelgen.generators.saved import hash_generator
from steelgen.models.autoencoder import LatentStatistics
from steelgen.models.spade import shrink_one_hot
from steelgen.sampling.sample import sample
from steelgen.training.loop import finetune, train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.generators.latent import autoencoder_config, latent_config
from tests.generators.runs import load_run
from tests.training.test_loop import Recorder, assert_same_tensors

FEW = SolverSection(num_inference_steps=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("latent") / "tiny")


@pytest.fixture(scope="module")
def codec(dataset):
    """A short training of an autoencoder."""
    folder = dataset.parent / "codec"
    values = autoencoder_config(dataset, folder, max_steps=30, train_batch_size=8, learning_rate=1e-2)
    values |= {"preview": {"num_images": 0}, "measurement": {"every": None}, "validation": {"split": None}}
    train(parse_config(values, TrainConfig), Recorder())
    return folder


@pytest.fixture(scope="module")
def runs(dataset, codec):
    """An undisturbed run of either kind, and what it said."""
    said = {}
    for kind in ("joint_diffusion", "semantic_diffusion"):
        recorder = Recorder()
        folder = dataset.parent / kind
        train(parse_config(latent_config(kind, dataset, folder, codec), TrainConfig), recorder)
        said[kind] = (folder, recorder.events)
    return said


def prepare(kind, dataset, codec, count=4, generator=None, **options):
    config = parse_config({**latent_config(kind, dataset, "unused", codec, generator), **options}, TrainConfig)
    built, micrographs = prepare_training(config)
    trainable = build_trainable(built, config)
    crops = build_crops(config, trainable, micrographs)
    return built, trainable, torch.utils.data.default_collate([crops[number] for number in range(count)])


def test_what_the_autoencoder_keeps_is_said_before_training_and_stored(runs):
    folder, said = runs["joint_diffusion"]
    table = next(number for number, line in enumerate(said) if "recall of masks, 0.95 wanted" in line)
    assert [line.split()[0] for line in said[table + 1 : table + 4]] == ["matrix", "island", "film"]
    assert not any("saved" in line for line in said[:table])
    stored = json.loads((folder / "codec.json").read_text())
    assert stored["recall"].keys() == {"matrix", "island", "film"}
    assert stored["psnr_db"] > 5
    low = [name for name, found in stored["recall"].items() if found["recall"] < 0.95]
    assert all(any(line.startswith("warning") and name in line for line in said) for name in low)
    assert (folder / "codec.png").is_file()
    folder, said = runs["semantic_diffusion"]
    assert "recall" not in json.loads((folder / "codec.json").read_text())  # its masks are given
    assert any("PSNR" in line for line in said)


def test_resumed_with_the_autoencoder_elsewhere_it_is_bit_identical(dataset, codec, runs, tmp_path):
    kind = "joint_diffusion"
    shutil.copytree(codec / "export", tmp_path / "moved")
    for steps, path in ((2, codec), (4, tmp_path / "moved")):
        values = latent_config(kind, dataset, tmp_path / "run", path, max_steps=steps, checkpoint_every=1)
        values["preview"] = {"num_images": 0}
        train(parse_config(values, TrainConfig), Recorder(), resume=True)
    found = load_run(tmp_path / "run")
    assert any("codec" in name for name in found)
    assert_same_tensors(load_run(runs[kind][0]), found)


def test_another_autoencoder_is_refused_on_resuming(dataset, codec, runs, tmp_path):
    other = load_generator(codec)
    other.mask_codec.statistics.mean += 1
    other.save(tmp_path / "other")
    shutil.copytree(runs["joint_diffusion"][0], tmp_path / "run")
    values = latent_config("joint_diffusion", dataset, tmp_path / "run", tmp_path / "other", max_steps=6)
    with pytest.raises(InputError, match=r"generator\.latent"):
        train(parse_config(values, TrainConfig), Recorder(), resume=True)


def test_the_folder_needs_no_other(dataset, codec, runs, tmp_path):
    shutil.copytree(runs["joint_diffusion"][0] / "export", tmp_path / "alone")
    moved = shutil.move(codec, tmp_path / "gone")
    try:
        loaded = load_generator(tmp_path / "alone")
        assert hash_generator(tmp_path / "alone") == hash_generator(runs["joint_diffusion"][0])
        drawn = loaded.draw(DrawRequest([1], solver=FEW))
        assert drawn.images.shape == (1, 1, 16, 16)
        assert drawn.masks.shape == (1, 16, 16)
    finally:
        shutil.move(moved, codec)
    trained = load_generator(codec)
    assert_same_tensors(loaded.codec.image_codec.state_dict(), trained.image_codec.state_dict())
    assert_same_tensors(loaded.codec.mask_codec.state_dict(), trained.mask_codec.state_dict())


def test_losses_of_pairs_are_those_of_diffusers_on_latents(dataset, codec):
    built, trainable, batch = prepare("joint_diffusion", dataset, codec, generator={"self_conditioning": 0})
    batch["mask"][0, :4, :4] = 255
    batch["relation"] = torch.full((4,), 0.99)  # independent levels
    built.network.eval()
    own = built.codec
    clean = torch.cat([own.encode_images(batch["image"]), own.encode_masks(batch["mask"])], dim=1)
    assert clean.shape == batch["noise"].shape == (4, 8, 8, 8)
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch)
    schedule = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    times = [(batch[name] * 100).long() for name in ("fraction", "mask_fraction")]
    parts = [
        [function(tensor, batch["noise"][:, rows], time) for tensor, rows, time in cases]
        for function in (schedule.add_noise, schedule.get_velocity)
        for cases in [[(clean[:, rows], rows, time) for rows, time in zip((slice(4), slice(4, 8)), times, strict=True)]]
    ]
    noisy, target = (torch.cat(each, dim=1) for each in parts)
    output = built.network(noisy, times[0] + 1, times[1] + 1, return_dict=False)[0]
    errors = (output - target).square()
    known = torch.ones(4, 1, 8, 8)
    known[0, :, :2, :2] = 0  # latents with an ignored pixel
    torch.testing.assert_close(found.parts["image_loss"], errors[:, :4].mean(dim=(1, 2, 3)), atol=1e-4, rtol=1e-3)
    mask_loss = (errors[:, 4:] * known).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.parts["mask_loss"], mask_loss, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", ["area", "nearest"])
def test_losses_of_images_are_those_of_diffusers_on_latents_and_shrunk_masks(dataset, codec, mode):
    section = {"unet": {"mask_resize": mode}}
    built, trainable, batch = prepare("semantic_diffusion", dataset, codec, generator=section)
    batch["mask"][0] = 255
    torch.nn.init.normal_(built.network.conv_out.weight, std=0.1)
    built.network.eval()
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch)
    clean = built.codec.encode_images(batch["image"])
    one_hot = F.one_hot(batch["mask"].clamp(max=3), 4)[..., :3].permute(0, 3, 1, 2).float()
    one_hot *= ~batch["dropped"][:, None, None, None]
    shares = F.avg_pool2d(one_hot, 2) if mode == "area" else one_hot[:, :, ::2, ::2]
    schedule = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    times = (batch["fraction"] * 100).long()
    output = built.network(schedule.add_noise(clean, batch["noise"], times), times, shares)
    errors = (output - schedule.get_velocity(clean, batch["noise"], times)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.losses, errors, atol=1e-4, rtol=1e-3)


def test_no_gradient_or_step_reaches_the_autoencoder(dataset, codec, runs):
    before, after = load_generator(codec), load_generator(runs["joint_diffusion"][0]).codec
    assert_same_tensors(before.image_codec.state_dict(), after.image_codec.state_dict())
    built, trainable, batch = prepare("joint_diffusion", dataset, codec)
    trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses.sum().backward()
    assert all(
        parameter.grad is None for network in built.codec.networks.values() for parameter in network.parameters()
    )


class KnownVelocity(torch.nn.Module):
    """Predicts the velocity toward given latents."""

    def __init__(self, network, schedule, latents):
        super().__init__()
        self.config, self.schedule, self.latents = network.config, schedule, latents
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, inputs, image_time, mask_time, return_dict=True):
        channels = self.latents.shape[1]
        velocity = []
        for rows, time in ((slice(4), image_time), (slice(4, channels), mask_time)):
            signal, spread = (1.0, 0.0) if time[0] == 0 else self.schedule.interpolate_levels(float(time[0]) - 1)
            velocity.append((signal * inputs[:, rows] - self.latents[:, rows]) / max(spread, 1e-6))
        return (torch.cat(velocity, dim=1),)


@pytest.mark.parametrize("given", ["nothing", "masks", "images"])
def test_what_the_network_knows_is_decoded(dataset, codec, given):
    """Sampling ends in the latents that the network predicts, and decodes them."""
    built, _, batch = prepare("joint_diffusion", dataset, codec, count=1)
    own = built.codec
    latents = torch.cat([own.encode_images(batch["image"]), own.encode_masks(batch["mask"])], dim=1)
    built.network = KnownVelocity(built.network, built.schedule, latents)
    fields = {"nothing": {}, "masks": {"masks": batch["mask"]}, "images": {"images": batch["image"]}}[given]
    drawn = built.draw(DrawRequest([3], solver=SolverSection(num_inference_steps=20), **fields))
    wanted = own.reconstruct(batch["image"], batch["mask"])
    assert (drawn.images - wanted.images).abs().mean() < 0.02
    assert torch.equal(drawn.masks, batch["mask"]) if given == "masks" else True
    assert (drawn.masks == (batch["mask"] if given == "masks" else wanted.masks)).float().mean() > 0.99


def test_inpainting_keeps_the_pixels_that_are_known(runs, dataset):
    loaded = load_generator(runs["joint_diffusion"][0])
    images, masks = torch.linspace(-1, 1, 20 * 18).view(1, 1, 20, 18), torch.arange(360).view(1, 20, 18) % 3
    known = torch.ones(1, 20, 18, dtype=torch.bool)
    known[:, 5:12, 3:11] = False
    drawn = loaded.draw(DrawRequest([2], masks, images, FEW, known=known))
    assert torch.equal(drawn.images[:, 0][known], images[:, 0][known])
    assert torch.equal(drawn.masks[known], masks[known])
    assert not torch.equal(drawn.images, images)


@pytest.mark.parametrize(
    ("kind", "size"), [("joint_diffusion", 16), ("semantic_diffusion", 16), ("semantic_diffusion", 21)]
)
def test_batches_change_nothing_and_sizes_are_those_asked_for(runs, kind, size):
    loaded = load_generator(runs[kind][0])
    masks = torch.arange(3 * size * 18).view(3, size, 18) % 3
    request = DrawRequest([4, 5, 6], masks, solver=FEW)
    whole = loaded.draw(request).images
    assert whole.shape == (3, 1, size, 18)
    single = loaded.draw(DrawRequest([5], masks[1:2], solver=FEW)).images
    assert torch.equal(single, whole[1:2])


def test_masks_alone_and_images_alone_have_latents_too(dataset, codec):
    """Without images the network has the latents of masks only; without masks it is unconditional."""
    section = {"image_channels": "none"}
    built, trainable, batch = prepare("joint_diffusion", dataset, codec, count=2, generator=section)
    assert batch["noise"].shape == (2, 4, 8, 8)
    assert trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses.isfinite().all()
    drawn = built.draw(DrawRequest([1, 2], solver=FEW))
    assert drawn.images is None
    assert drawn.masks.shape == (2, 16, 16)
    values = latent_config("semantic_diffusion", dataset, "unused", codec)
    values["data"]["unconditional"] = True
    generator, _ = prepare_training(parse_config(values, TrainConfig))
    assert generator.needs == frozenset()
    assert generator.draw(DrawRequest([1], solver=FEW)).images.isfinite().all()


def test_start_images_are_encoded(runs):
    """With little noise, and a network that changes nothing, the images are their reconstructions."""
    loaded = load_generator(runs["semantic_diffusion"][0])
    images = torch.linspace(-0.5, 0.5, 256).view(1, 1, 16, 16)
    start = StartImages(images, 0.02)
    drawn = loaded.draw(DrawRequest([1], torch.zeros(1, 16, 16).long(), solver=SolverSection(), start=start)).images
    reconstructed = loaded.codec.reconstruct(images, None).images
    assert (drawn - reconstructed).abs().mean() < 0.05
    assert (drawn - reconstructed).abs().mean() < (drawn - reconstructed.flip(-2)).abs().mean()


def test_masks_are_shrunk_by_shares():
    one_hot = F.one_hot(torch.arange(5 * 6).view(1, 5, 6) % 2, 2).permute(0, 3, 1, 2).float()
    found = shrink_one_hot(one_hot, 2, "area")
    assert found.shape == (1, 2, 3, 3)
    torch.testing.assert_close(found[:, :, :2], F.avg_pool2d(one_hot[:, :, :4], 2))
    assert torch.equal(found.sum(dim=1), torch.ones(1, 3, 3))
    assert shrink_one_hot(one_hot[:, :0], 2, "area").shape == (1, 0, 3, 3)


def test_pairs_are_sampled_through_the_config(runs, tmp_path):
    values = {
        "generator": str(runs["joint_diffusion"][0]),
        "output_dir": str(tmp_path / "out"),
        "mask_source": {"kind": "none"},
        "num_samples": 2,
        "solver": {"num_inference_steps": 2},
    }
    out = sample(parse_config(values, SampleConfig))
    assert len(list((out / "samples").glob("*.png"))) == len(list((out / "labels").glob("*.png"))) == 2


def test_fine_tuning_keeps_the_autoencoder(dataset, runs, tmp_path):
    other = write_tiny_dataset(tmp_path / "other", num_classes=2)
    values = tiny_train_config(other, tmp_path / "run", max_steps=1)
    values["data"] |= {"image_size": 24}
    values["checkpoint"] = str(runs["semantic_diffusion"][0])
    values["measurement"] = {"every": None}
    del values["generator"]
    finetune(parse_config(values, FinetuneConfig), Recorder())
    loaded = load_generator(tmp_path / "run")
    assert loaded.network.config.image_size == 12
    drawn = loaded.draw(DrawRequest([1], torch.zeros(1, 24, 24).long(), solver=FEW)).images
    assert drawn.shape == (1, 1, 24, 24)
    values["data"]["image_size"] = 22
    with pytest.raises(InputError, match="image_size 22: must be a multiple of 4"):
        finetune(parse_config({**values, "run_dir": str(tmp_path / "no")}, FinetuneConfig), Recorder())


def test_statistics_of_an_untrained_autoencoder_change_nothing():
    latents = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(LatentStatistics(3).standardize(latents), latents)


def test_what_does_not_fit_is_one_line(dataset, codec, runs, tmp_path):
    def refuse(kind, message, path=codec, generator=None, data=None, folder=dataset):
        values = latent_config(kind, folder, tmp_path / "no", path, generator)
        values["data"] |= data or {}
        with pytest.raises(InputError, match=message):
            prepare_training(parse_config(values, TrainConfig))

    both = ("joint_diffusion", "semantic_diffusion")
    for kind in both:
        refuse(kind, "was trained with in_channels 1, data.in_channels is 3", data={"in_channels": 3})
        refuse(kind, "is of kind joint_diffusion; train one of kind autoencoder", runs["joint_diffusion"][0])
        refuse(kind, "no such run, checkpoint or export", tmp_path / "none")
        refuse(kind, "image_size 18: must be a multiple of 4 for 2 levels", data={"image_size": 18})
    renamed = tmp_path / "renamed"
    shutil.copytree(dataset, renamed)
    info = load_dataset_info(renamed)
    save_dataset_info(renamed, info.model_copy(update={"class_names": ["matrix", "island", "pore"]}))
    refuse(
        "joint_diffusion", "has the classes matrix, island, film, the dataset has matrix, island, pore", folder=renamed
    )
    built = load_generator(codec)
    built.info, built.mask_codec = built.info.model_copy(update={"class_names": [], "palette": []}), None
    built.save(tmp_path / "images")
    refuse("joint_diffusion", "was trained without masks", tmp_path / "images")
    for change, name in [
        ({"low_resolution": {"factor": 2}}, "low_resolution"),
        ({"unet": {"instance_edges": True}}, r"unet\.instance_edges"),
        ({"unet": {"learn_sigma": True}}, r"unet\.learn_sigma"),
        ({"noise": {"objective": "variational"}}, r"noise\.objective 'variational'"),
    ]:
        refuse("semantic_diffusion", f"latent: not applicable to {name}", generator=change)
    values = {"generator": str(runs["joint_diffusion"][0]), "output_dir": str(tmp_path / "out"), "num_samples": 1}
    source = {"kind": "split", "dataset": str(dataset), "split": "test"}
    inpaint = {"size": [8, 8], "phase_fraction": {"film": 0.5}}
    with pytest.raises(InputError, match=r"inpaint\.phase_fraction: not applicable to this generator of kind"):
        sample(parse_config({**values, "mask_source": source, "inpaint": inpaint}, SampleConfig))
    assert not (tmp_path / "out").exists()
    assert np.isfinite(json.loads((runs["joint_diffusion"][0] / "codec.json").read_text())["kept_detail"])


@pytest.mark.parametrize("kind", ["joint_diffusion", "semantic_diffusion"])
def test_as_a_source_of_features_the_network_sees_noisy_latents(runs, kind):
    """With diffusers' noise on the latents of images, and maps that have the place of the pixels."""
    generator = load_generator(runs[kind][0])
    source, seen = open_network(generator, "run"), []
    images = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hook = source.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    maps = DiffusionFeatures(source, [20], [0, len(source.blocks) - 1])(images)
    hook.remove()
    latents = generator.codec.encode_images(images)
    channels = latents.shape[1]
    bits = generator.bits if kind == "joint_diffusion" else 0
    noise = randn_by_seed((channels + bits, *latents.shape[2:]), [NOISE_SEED])[:, :channels]
    scheduler = DDPMScheduler.from_config(generator.schedule.config)
    expected = scheduler.add_noise(latents, noise.expand_as(latents), torch.full((2,), 20))
    torch.testing.assert_close(seen[0][:, :channels], expected)
    assert source.stride % generator.factor == 0
    assert max(part.shape[2:] for part in maps) == latents.shape[2:]

"""The style-based generator and the masked one: killed in either phase, by two processes, drawn from, walked through.

What all kinds of adversarial training share is in test_gan.py.
"""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import config_to_json, parse_config
from steelgen.config.gan import GanSection
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.evaluation.segment import train_labeler
from steelgen.generators import DrawRequest, Latents, LatentSpace
from steelgen.generators.families import build_trainable, load_generator
from steelgen.generators.gan.losses import compute_player_losses
from steelgen.generators.gan.training import GanTraining
from steelgen.generators.penalty import compute_penalty
from steelgen.sampling.interpolate import Walk, interpolate
from steelgen.sampling.replay import replay
from steelgen.training.batch_size import take_steps
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.runs import invoke, load_run, run_killed, run_two_processes
from tests.generators.test_gan import gan_config, write_config
from tests.training.test_loop import Recorder, assert_same_tensors

KINDS = {
    # Penalties at steps 1 and 4: a run that forgot its count when it went on from step 2 would take one at step 3.
    "style": {"architecture": "style", "latent_dim": 6, "base_channels": 4, "penalty_every": 3, "ada_images": 40},
    "mask": {
        "architecture": "style",
        "condition": "mask",
        "latent_dim": 6,
        "base_channels": 4,
        "spade_channels": 4,
        "penalty_every": 3,
        "ada_images": 40,
    },
}


def style_config(dataset, run_dir, kind, **train):
    config = gan_config(dataset, run_dir, learning_rate=0.002, **train)
    return {**config, "generator": {"kind": "gan", **KINDS[kind]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dataset, and an undisturbed run of each kind on it through the command line."""
    folder = tmp_path_factory.mktemp("style-gan")
    dataset = write_tiny_dataset(folder / "tiny")
    for kind in KINDS:
        config = write_config(folder / f"{kind}.json", style_config(dataset, folder / kind, kind))
        done = invoke("train", "-c", config)
        assert done.exit_code == 0, done.output
    return dataset, {kind: folder / kind for kind in KINDS}


def load_strength(run_dir):
    saved = json.loads((run_dir / "checkpoints/step-000004/training.json").read_text())["progress"]["trainable"]
    assert saved["steps"] == 4
    return saved["augmentation"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_tells_of_penalties_and_augmentation(runs, kind):
    rows = [json.loads(line) for line in (runs[1][kind] / "metrics.jsonl").read_text().splitlines()]
    assert ["r1" in row for row in rows] == [True, False, False, True]
    assert all(-1 <= row["r_t"] <= 1 and 0 <= row["ada_p"] <= 0.8 for row in rows)
    assert "kid" in rows[1]
    assert json.loads((runs[1][kind] / "best/selection.json").read_text())["criterion"] == "kid"


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_either_phase_it_goes_on_bit_identically(runs, tmp_path, kind, phase):
    dataset, undisturbed = runs
    config = write_config(tmp_path / "gan.json", style_config(dataset, tmp_path / "run", kind))
    # In the first of the two micro-batches of step 3.
    assert run_killed(GanTraining, phase, 5, "train", "-c", config) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))[-1] == "step-000002"
    resumed = invoke("train", "-c", config, "--resume", "auto")
    assert resumed.exit_code == 0, resumed.output
    assert_same_tensors(load_run(undisturbed[kind]), load_run(tmp_path / "run"))
    assert load_strength(tmp_path / "run") == load_strength(undisturbed[kind])


def test_two_processes_train_as_one_with_their_batches_together(runs, tmp_path):
    """Up to the order of sums; the strength of the augmentation, which goes by all crops, exactly."""
    found = {}
    for name, crops in (("one", 4), ("two", 2)):
        values = style_config(runs[0], tmp_path / name, "style", train_batch_size=crops, checkpoint_every=4)
        config = write_config(tmp_path / f"{name}.json", {**values, "measurement": {"every": None}})
        if name == "one":
            assert invoke("train", "-c", config).exit_code == 0
        else:
            run_two_processes("train", "-c", config)
        found[name] = load_run(tmp_path / name)
    assert load_strength(tmp_path / "one")["strength"] == pytest.approx(load_strength(tmp_path / "two")["strength"])
    for name, tensor in found["one"].items():
        if "weights" in name:
            torch.testing.assert_close(found["two"][name], tensor, rtol=1e-2, atol=1e-3)


def test_a_step_against_its_formulas(runs, tmp_path):
    """Relativistic losses, R1 and R2 times every/2·γ in steps that have them, none held fixed has gradients."""
    values = style_config(runs[0], tmp_path / "run", "style")
    values["generator"] |= {"ada_target": None, "r1_gamma": 2.0, "r2_gamma": 0.5}
    config = parse_config(values, TrainConfig)
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in range(4)])
    generate, judge = (trainable.networks[name] for name in ("generator", "discriminator"))
    images = generator.standardize(batch["image"]).requires_grad_()
    assert images.mean().abs() < 1
    fake = generate(batch["latents"][:, 0]).detach().requires_grad_()
    plain = compute_player_losses(judge(images), judge(fake), "relativistic")[0]
    penalties = [compute_penalty(judge(seen), seen) for seen in (images, fake)]
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch)
    torch.testing.assert_close(found.losses, plain + 3 * (2.0 / 2 * penalties[0] + 0.5 / 2 * penalties[1]))
    torch.testing.assert_close(found.parts["r1"], penalties[0].detach())
    found.losses.sum().backward()
    assert all(parameter.grad is None for parameter in generate.parameters())
    trainable.end_step(lambda tensor: tensor)
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch)
    torch.testing.assert_close(found.losses, plain)
    drawn = generate(batch["latents"][:, 1])
    found = trainable.compute_loss(trainable.phases[1], trainable.networks, batch)
    torch.testing.assert_close(found.losses, compute_player_losses(judge(images), judge(drawn), "relativistic")[1])


def test_the_discriminator_has_a_learning_rate_of_its_own(runs, tmp_path):
    """The first step of Adam moves a weight by the learning rate, wherever its gradient is not tiny."""
    values = style_config(runs[0], tmp_path / "run", "style", max_steps=1, warmup_steps=0, weight_decay=0.0)
    values["generator"]["discriminator_rate"] = 4.0
    config = parse_config({**values, "measurement": {"every": None}}, TrainConfig)
    generator, _ = prepare_training(config)
    before = {name: network.state_dict() for name, network in build_trainable(generator, config).networks.items()}
    train(config, Recorder())
    after = load_file(tmp_path / "run/checkpoints/step-000001/weights.safetensors")
    for name, rate in (("generator", 0.002), ("discriminator", 0.008)):
        moved = [(after[f"{name}.{key}"] - value).abs().max() for key, value in before[name].items()]
        assert max(moved).item() == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_is_tuned_with_all_phases(runs, tmp_path, kind):
    config = parse_config(style_config(runs[0], tmp_path / "run", kind), TrainConfig)
    trial = take_steps(config, 4, torch.device("cpu"))
    assert trial.images_per_second > 0


def test_images_depend_on_seed_and_mask_alone(runs):
    style, masked = (load_generator(runs[1][kind]) for kind in KINDS)
    assert (style.needs, masked.needs) == (frozenset(), {"masks"})
    masks = torch.randint(3, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    for generator, given in ((style, None), (masked, masks)):
        together = generator.draw(DrawRequest([3, 4, 5], given)).images
        alone = generator.draw(DrawRequest([4], None if given is None else given[1:2])).images
        assert torch.equal(alone[0], together[1])
        assert not torch.equal(together[0], together[1])
        assert together.abs().max() <= 1
    larger = masked.draw(DrawRequest([0], torch.zeros(1, 40, 23, dtype=torch.int64))).images
    assert larger.shape == (1, 1, 40, 23)


def test_truncation_draws_styles_to_their_mean(runs):
    generator = load_generator(runs[1]["style"])
    assert "truncation" in generator.takes
    spreads = []
    for truncation in (None, 1.0, 0.5, 0.0):
        images = generator.draw(DrawRequest(range(6), truncation=truncation)).images
        spreads.append(images.std(dim=0).mean().item())
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-3)
    # Noise is left at 0, and its layers have learned next to nothing in four steps.
    assert spreads[0] > spreads[2] > 2 * spreads[3]


def sample_config(run_dir, folder, **values):
    return {"generator": str(run_dir), "output_dir": str(folder), "mask_source": {"kind": "none"}, **values}


def test_ends_of_a_walk_are_plain_samples_to_the_last_bit(runs, tmp_path):
    generator = load_generator(runs[1]["style"])
    assert isinstance(generator, LatentSpace)
    plain = generator.draw(DrawRequest([7, 9])).images
    for space in ("z", "w"):
        ends = generator.find_latents([7, 9], space, (16, 16))
        assert torch.equal(generator.draw(DrawRequest([0, 0], latents=ends)).images, plain)
    config = parse_config(sample_config(runs[1]["style"], tmp_path / "unused"), SampleConfig)
    interpolate(config, Walk((7, 9, 7), 4), 0, tmp_path / "grid.png")
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 16 + 2, 4 * 16 + 3 * 2)
    assert np.array_equal(grid[:16, :16], grid[-16:, -16:])
    assert np.array_equal(grid[:16, -16:], grid[-16:, :16])
    interpolate(config, Walk((7, 9), 4, "z"), 0, tmp_path / "z.gif")
    assert Image.open(tmp_path / "z.gif").n_frames == 6


def test_a_walk_over_a_mask_keeps_to_it(runs, tmp_path):
    source = {"kind": "split", "dataset": str(runs[0]), "split": "test"}
    values = sample_config(runs[1]["mask"], tmp_path / "unused", mask_source=source)
    result = CliRunner().invoke(
        app, ["interpolate", "-c", write_config(tmp_path / "s.json", values), "-o", str(tmp_path / "walk.png")]
    )
    assert result.exit_code == 0, result.output
    assert np.asarray(Image.open(tmp_path / "walk.png")).shape == (16, 8 * 16 + 7 * 2)


def test_an_image_of_the_generator_is_found_again(runs, tmp_path):
    """Projection of what it draws itself, without noise; the command walks between two real micrographs."""
    generator = load_generator(runs[1]["style"])
    found = generator.find_latents([3], "w", (16, 16))
    target = generator.draw(DrawRequest([0], latents=Latents("w", found.styles, torch.zeros_like(found.noise)))).images
    mean = generator.draw(DrawRequest([3], truncation=0.0)).images
    latents, error = generator.project(target, 150, lambda done, total: None)
    assert latents.styles.shape == (1, generator.network.num_styles, 6)
    assert error.item() < 0.3 * (mean - target).square().mean().sqrt().item()
    assert all(parameter.requires_grad for parameter in generator.network.parameters())
    config = write_config(tmp_path / "s.json", sample_config(runs[1]["style"], tmp_path / "unused"))
    ends = [str(runs[0] / f"train/images/train{number}.png") for number in (0, 1)]
    walk = ["interpolate", "-c", config, "--from", ends[0], "--to", ends[1], "--projection-steps", "5"]
    result = CliRunner().invoke(app, [*walk, "--frames", "3", "-o", str(tmp_path / "walk.png")])
    assert result.exit_code == 0, result.output
    assert result.output.count("RMS error of") == 2
    assert np.asarray(Image.open(tmp_path / "walk.png")).shape == (16, 3 * 16 + 2 * 2)


def test_images_get_masks_from_a_segmenter(runs, tmp_path):
    """Pairs with confidence maps, the unsure ones dropped and counted, and images drawn again from their rows."""
    dataset, folders = runs
    settings = {"dataset": str(dataset), "output_dir": str(tmp_path / "segmenter"), "image_size": 16, "crop_size": 24}
    train_labeler(parse_config({**settings, "segmenter": {"steps": 30, "base_channels": 8}}, SegmentConfig))

    def draw(name, **labels):
        labels = {"segmenter": str(tmp_path / "segmenter"), **labels}
        values = sample_config(folders["style"], tmp_path / name, labels=labels, num_samples=6, truncation=0.9)
        result = CliRunner().invoke(app, ["sample", "-c", write_config(tmp_path / "s.json", values)])
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / name / "metadata.jsonl").read_text().splitlines()]
        for row in rows:
            file = row["file_name"].split("/")[1]
            confidence = np.asarray(Image.open(tmp_path / name / "confidence" / file)) / 255
            assert confidence.mean() == pytest.approx(row["labels"]["confidence"], abs=0.01)
            assert np.asarray(Image.open(tmp_path / name / row["mask"])).max() < 3
            assert len(row["labels"]["segmenter_sha256"]) == 64
        return rows

    median = float(np.median([row["labels"]["confidence"] for row in draw("all")]))
    rows = draw("sure", min_confidence=median)
    assert min(row["labels"]["confidence"] for row in rows) >= median
    counted = json.loads((tmp_path / "sure/sampling.json").read_text())
    dropped = sum(count for row in rows for count in row["dropped"].values())
    assert dropped >= 1
    assert (counted["kept"], counted["dropped"]) == (6, {"segmenter is not sure enough": dropped})
    assert json.loads((tmp_path / "sure/dataset.json").read_text())["class_names"] == ["matrix", "island", "film"]
    assert replay(tmp_path / "all/metadata.jsonl", 2)[1] is True


def test_old_configs_are_what_they_were_and_resolved_ones_read_again():
    old = parse_config({"kind": "gan"}, GanSection)
    assert (old.architecture, old.condition, old.objective, old.r1_gamma, old.ada_target) == (
        "dcgan",
        "none",
        "logistic",
        0,
        None,
    )
    assert (old.latent_dim, old.base_channels, old.adam_betas) == (100, 64, (0.5, 0.999))
    for kind in KINDS.values():
        section = parse_config({"kind": "gan", **kind}, GanSection)
        assert parse_config(config_to_json(section), GanSection) == section


@pytest.mark.parametrize("kind", KINDS)
def test_older_runs_draw_and_go_on_as_they_did(runs, tmp_path, kind):
    """Their files lack noise_planes and fine_discriminator; one plane and none is what they had."""
    mask = torch.zeros(1, 16, 16, dtype=torch.int64) if kind == "mask" else None
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        values = style_config(runs[0], tmp_path / name, kind, max_steps=steps)
        values["generator"] |= {"noise_planes": 1, "fine_discriminator": False}
        train(parse_config(values, TrainConfig), Recorder(), resume=name == "parts")
        if steps == 2:
            drawn = load_generator(tmp_path / name).draw(DrawRequest([5], mask))
            for path in [*(tmp_path / name).rglob("generator.json"), tmp_path / name / "config.json"]:
                written = json.loads(path.read_text())
                section = written["section" if "section" in written else "generator"]
                del section["noise_planes"], section["fine_discriminator"]
                path.write_text(json.dumps(written))
            again = load_generator(tmp_path / name).draw(DrawRequest([5], mask))
            assert torch.equal(again.images, drawn.images)
    assert_same_tensors(load_run(tmp_path / "whole"), load_run(tmp_path / "parts"))
    today = parse_config({"kind": "gan", **KINDS[kind]}, GanSection)
    assert (today.noise_planes, today.fine_discriminator) == (8, kind == "mask")
    values["generator"].pop("noise_planes")
    with pytest.raises(InputError, match="noise_planes"):
        train(parse_config(values, TrainConfig), Recorder(), resume=True)


def test_what_cannot_be_is_one_line(runs, tmp_path):
    dataset, folders = runs
    for section, change, message in [
        ("data", {"image_size": 24}, "image_size 24: must be a power of two"),
        ("data", {"unconditional": True}, "has no masks; generator.condition 'mask' needs them"),
        ("train", {"train_batch_size": 99}, "have 12 crops, fewer than the 99 of a batch"),
        ("generator", {"architecture": "dcgan"}, "condition 'mask' needs architecture 'style', not 'dcgan'"),
        (
            "generator",
            {
                "architecture": "dcgan",
                "condition": "none",
                "objective": "logistic",
                "spade_channels": None,
                "noise_planes": 2,
            },
            "noise_planes 2: not applicable to architecture 'dcgan'",
        ),
        (
            "generator",
            {
                "architecture": "dcgan",
                "condition": "none",
                "objective": "logistic",
                "spade_channels": None,
                "fine_discriminator": True,
            },
            "fine_discriminator true: not applicable to architecture 'dcgan'",
        ),
        ("generator", {"objective": "logistic"}, "objective 'logistic': not applicable to condition 'mask'"),
    ]:
        values = style_config(dataset, tmp_path / "run", "mask")
        values[section] = {**values.get(section, {}), **change}
        with pytest.raises(InputError, match=message):
            train(parse_config(values, TrainConfig), Recorder())
    source = {"kind": "split", "dataset": str(dataset), "split": "test"}
    labels = {"segmenter": str(tmp_path / "none")}
    for kind, change, message in [
        ("style", {"mask_source": source}, "the generator was trained without masks; use kind 'none'"),
        ("mask", {"mask_source": source, "truncation": 0.5}, "truncation: not applicable"),
        ("mask", {"mask_source": source, "labels": labels}, "labels needs mask_source.kind 'none', not 'split'"),
        ("style", {"labels": labels}, "segmenter.json"),
        ("mask", {}, "masks contain only ignored pixels"),
    ]:
        values = sample_config(folders[kind], tmp_path / "out", num_samples=2, **change)
        result = CliRunner().invoke(app, ["sample", "-c", write_config(tmp_path / "s.json", values)])
        assert result.exit_code == 2, result.output
        assert message in result.output.replace("\n", " ")
        assert not (tmp_path / "out/samples").exists()
    config = parse_config(sample_config(folders["style"], tmp_path / "out"), SampleConfig)
    for walk, message in [
        (Walk((1,)), "needs at least two seeds or two images"),
        (Walk((0, 1), space="q"), "space 'q': not a latent space of this generator; known: z, w"),
        (Walk(images=(tmp_path / "a.png", tmp_path / "b.png"), space="z"), "images can only be projected to"),
    ]:
        with pytest.raises(InputError, match=message):
            interpolate(config, walk, 0, tmp_path / "walk.png")
    masked = sample_config(folders["mask"], tmp_path / "out", mask_source=source, truncation=0.5)
    with pytest.raises(InputError, match="truncation: not applicable"):
        interpolate(parse_config(masked, SampleConfig), Walk(), 0, tmp_path / "walk.png")


def test_the_weights_that_draw_are_the_averages(runs):
    """Plain networks have no buffers: what is exported is the average that the checkpoint holds."""
    run_dir = runs[1]["style"]
    average = load_file(run_dir / "checkpoints/step-000004/average.safetensors")
    for name, value in load_file(run_dir / "export/weights.safetensors").items():
        assert torch.equal(value, average[name])

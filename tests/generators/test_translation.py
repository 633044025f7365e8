"""Translation: losses against plain formulas, the pool, stopped in either phase, labels and whole micrographs."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.sample import ChangeLabelsSection, SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.config.translation import TranslationSection
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_mask, save_dataset_info
from steelgen.devices import randn_by_seed
from steelgen.errors import InputError
from steelgen.evaluation.segment import train_labeler
from steelgen.generators import DrawRequest
from steelgen.generators.families import build_trainable, load_generator
from steelgen.generators.image_losses import compute_log_power
from steelgen.generators.saved import DESCRIPTION_FILE
from steelgen.generators.translation.generator import sample_noise
from steelgen.generators.translation.losses import compute_contrast
from steelgen.generators.translation.pool import ImagePool
from steelgen.generators.translation.training import TranslationTraining
from steelgen.sampling.change import compute_change, compute_levels
from steelgen.sampling.labeling import build_labeler
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.training.batch_size import take_steps
from steelgen.training.loop import finetune, train
from steelgen.training.measurement import Measurement
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.runs import load_run, run_two_processes
from tests.training.test_loop import Recorder, assert_same_tensors

STEPS = 4


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Source with three classes, and brighter, finer grained target with other classes."""
    folder = tmp_path_factory.mktemp("sides")
    source, target = write_tiny_dataset(folder / "source"), write_tiny_dataset(folder / "target", num_classes=2)
    info = load_dataset_info(target)
    save_dataset_info(target, info.model_copy(update={"class_names": ["ferrite", "pore"]}))
    rng = np.random.default_rng(1)
    for path in target.glob("*/images/*.png"):
        image = np.asarray(Image.open(path)) * 0.5 + 100 + rng.normal(0, 20, (40, 48))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return source, target


def build_values(sides, run_dir, generator=(), **train):
    return {
        "run_dir": str(run_dir),
        "data": {"dataset": str(sides[1]), "source": {"dataset": str(sides[0])}, "image_size": 16, "crop_size": 24},
        "generator": {
            "kind": "translation",
            "mode": "cyclegan",
            "width": 4,
            "blocks": 1,
            "discriminator_width": 4,
            "discriminator_layers": 1,
            **dict(generator),
        },
        "train": {
            "max_steps": STEPS,
            "train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "warmup_steps": 1,
            "lr_scheduler": "constant_then_linear",
            "checkpoint_every": 1,
            "log_every": 1,
            "trackers": [],
            **train,
        },
        "preview": {"every": 2, "num_images": 3},
        "measurement": {"every": STEPS, "num_images": 6, "searched_images": 2},
    }


CYCLEGAN = {
    "pool_size": 5,
    "ada_target": 0.1,
    "ada_images": 40,
    "r1_gamma": 0.1,
    "penalty_every": 2,
    "noise_channels": 1,
    "row_noise_channels": 1,
}
CUT = {"mode": "cut", "num_patches": 8, "discriminator_noise": 0.1}
ROWS = {**CUT, "row_noise_channels": 2, "fft_per_frequency": True}
MODES = {"cyclegan": CYCLEGAN, "cut": CUT, "rows": ROWS}


def run_training(sides, run_dir, generator=(), resume=False, **options):
    values = build_values(sides, run_dir, generator, **options)
    return train(parse_config(values, TrainConfig), Recorder(), resume=resume)


@pytest.fixture(scope="module")
def whole(sides, tmp_path_factory):
    """Undisturbed runs of both modes."""
    folder = tmp_path_factory.mktemp("translation")
    for name, generator in MODES.items():
        run_training(sides, folder / name, generator)
    return folder


def test_a_run_shows_its_stages_and_selects_by_kid(whole):
    for name, columns, parts in (
        ("cyclegan", 3, {"cycle", "identity", "r_t", "ada_p"}),
        ("cut", 2, {"nce", "identity", "fft_score_real", "score_generated"}),
    ):
        run = whole / name
        preview = Image.open(run / "previews/step-000000.png")
        assert preview.size == (columns * 132 - 4, 3 * 132 - 4)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = {key.removesuffix("_generators").removesuffix("_discriminators") for key in rows[0]}
        assert parts <= found
        assert json.loads((run / "best/selection.json").read_text())["criterion"] == "kid"
        rates = [row["learning_rate"] for row in rows]
        assert rates == pytest.approx([0, 2e-4, 2e-4, 1e-4])


@pytest.mark.parametrize(
    ("mode", "phase"),
    [("cyclegan", "generators"), ("cyclegan", "discriminators"), ("cut", "generators"), ("rows", "discriminators")],
)
def test_stopped_in_either_phase_it_goes_on_bit_identically(sides, whole, tmp_path, monkeypatch, mode, phase):
    generator = MODES[mode]
    compute_loss, left = TranslationTraining.compute_loss, [6]

    def stop(self, due, networks, batch, validates=False):
        left[0] -= due.name == phase
        if not left[0]:
            raise KeyboardInterrupt
        return compute_loss(self, due, networks, batch, validates)

    monkeypatch.setattr(TranslationTraining, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(sides, tmp_path / "run", generator)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))[-1] == "step-000002"
    run_training(sides, tmp_path / "run", generator, resume=True)
    undisturbed = load_run(whole / mode)
    assert_same_tensors(undisturbed, load_run(tmp_path / "run"))
    pools = [value for name, value in undisturbed.items() if "pool_" in name]
    assert [pool.shape[0] for pool in pools] == ([5, 5] if mode == "cyclegan" else [])


@pytest.mark.parametrize(
    "generator", [CYCLEGAN, {**ROWS, "style_dim": 2, "discriminator_noise": 0}], ids=["cyclegan", "cut"]
)
def test_two_processes_train_what_one_does_with_twice_the_batch(sides, tmp_path, generator):
    """Up to the order of sums; noise of discriminators is each process's own."""
    found = {}
    for name, crops in (("one", 4), ("two", 2)):
        values = build_values(
            sides,
            tmp_path / name,
            generator,
            train_batch_size=crops,
            gradient_accumulation_steps=1,
            checkpoint_every=STEPS,
        )
        values |= {"preview": {"num_images": 0}, "measurement": {"every": None}}
        if name == "one":
            train(parse_config(values, TrainConfig), Recorder())
        else:
            (tmp_path / "config.json").write_text(json.dumps(values))
            run_two_processes("train", "-c", tmp_path / "config.json")
        found[name] = load_run(tmp_path / name)
    assert found["one"].keys() == found["two"].keys()
    for name, tensor in found["one"].items():
        if "weights" in name or "pool" in name:
            torch.testing.assert_close(found["two"][name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_a_moved_source_is_known_again_and_a_changed_one_refused(sides, whole, tmp_path):
    run, moved = shutil.copytree(whole / "cut", tmp_path / "run"), shutil.copytree(sides[0], tmp_path / "moved")
    assert run_training((moved, sides[1]), run, CUT, resume=True).global_step == STEPS
    path = moved / "train/images/train0.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match=r"data\.source\.dataset"):
        run_training((moved, sides[1]), run, CUT, resume=True)


def test_losses_are_those_of_the_papers(sides, tmp_path):
    """With plain networks: one formula per phase, and gradients for the phase's networks alone."""
    plain = {"fft": 0, "pool_size": 0}
    config = parse_config(build_values(sides, tmp_path / "run", plain), TrainConfig)
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in range(3)])
    forth, back, judge, judge_back = (
        trainable.networks[name] for name in ("generator", "generator_back", "discriminator", "discriminator_back")
    )
    x, y = generator.standardize_source(batch["source_image"]), generator.standardize(batch["image"])
    found = trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses
    cycle = F.l1_loss(back(forth(x)), x) + F.l1_loss(forth(back(y)), y)
    same = F.l1_loss(forth(y), y) + F.l1_loss(back(x), x)
    expected = ((judge(forth(x)) - 1) ** 2).mean() + ((judge_back(back(y)) - 1) ** 2).mean() + 10 * cycle + 5 * same
    torch.testing.assert_close(found.mean(), expected)
    found = trainable.compute_loss(trainable.phases[1], trainable.networks, batch).losses
    expected = ((judge(y) - 1) ** 2).mean() + (judge(forth(x)) ** 2).mean()
    expected = expected + ((judge_back(x) - 1) ** 2).mean() + (judge_back(back(y)) ** 2).mean()
    torch.testing.assert_close(found.mean(), expected / 2)
    found.sum().backward()
    assert all(weight.grad is None for network in (forth, back) for weight in network.parameters())
    assert all(weight.grad is not None for network in (judge, judge_back) for weight in network.parameters())


def test_crops_of_the_source_are_unpaired_and_have_numbers_of_their_own(sides, tmp_path):
    config = parse_config(build_values(sides, tmp_path / "run"), TrainConfig)
    generator, micrographs = prepare_training(config)
    crops = build_crops(config, build_trainable(generator, config), micrographs)
    assert (
        len(
            {
                tuple(crops.micrograph_index(n) == crops.source.micrograph_index(n) for n in range(4 * k, 4 * k + 4))
                for k in range(8)
            }
        )
        > 1
    )
    item = crops[5]
    expected = crops.source[5]
    assert torch.equal(item["source_image"], expected["image"])
    assert torch.equal(item["source_mask"], expected["mask"])
    assert item["source_mask"].max() < 3


def test_contrast_is_a_softmax_cross_entropy():
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(2, 7, 5), dim=2) for _ in range(2))
    found = compute_contrast(queries, keys, 0.07)
    for image in range(2):
        terms = []
        for place in range(7):
            likeness = torch.tensor([float(queries[image, place] @ key) / 0.07 for key in keys[image]])
            terms.append(-torch.log(likeness.exp()[place] / likeness.exp().sum()))
        assert found[image].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_log_power_is_that_of_numpy():
    rng = np.random.default_rng(0)
    noise = rng.normal(3, 1, (400, 1, 32, 32))
    found = compute_log_power(torch.from_numpy(noise).float())
    assert found.shape == (400, 1, 32, 17)
    assert found.exp()[..., 4:12, 4:].mean().item() == pytest.approx(1, abs=0.05)  # without the floor 1e-3
    window = np.outer(np.hanning(32), np.hanning(32))
    one = noise[0, 0] - noise[0, 0].mean()
    power = np.abs(np.fft.rfft2(one * window)) ** 2 / (window**2).sum()
    assert np.allclose(found[0, 0].numpy(), np.log(np.fft.fftshift(power, axes=0) + 1e-3), atol=1e-3)
    wave = torch.sin(2 * torch.pi * 8 * torch.arange(32) / 32)[:, None].expand(32, 32)[None, None]
    peak = compute_log_power(wave)[0, 0].argmax().item()
    assert divmod(peak, 17) in ((8, 0), (24, 0))
    flat = torch.zeros(1, 1, 32, 32, requires_grad=True)
    compute_log_power(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_the_pool_is_the_same_for_one_process_and_for_two():
    torch.manual_seed(0)
    steps = [(torch.randn(4, 1, 2, 2), torch.rand(4, 2)) for _ in range(12)]
    alone, first, second = ImagePool(6), ImagePool(6), ImagePool(6)
    taken = 0
    for images, numbers in steps:
        chosen = alone.choose(images, numbers)
        parts = [
            pool.choose(images[part], numbers[part]) for pool, part in ((first, slice(0, 2)), (second, slice(2, 4)))
        ]
        assert torch.equal(torch.cat(parts), chosen)
        taken += int((chosen != images).any(dim=(1, 2, 3)).sum())
        alone.update(lambda tensor: tensor)
        queue = [images, numbers]
        for pool in (first, second):
            waiting = list(queue)
            pool.update(lambda tensor, waiting=waiting: waiting.pop(0))
        assert torch.equal(first.tensor(), alone.tensor())
        assert torch.equal(second.tensor(), alone.tensor())
    assert 12 <= taken <= 28  # of 40 once the pool is full
    everything = torch.cat([images for images, _ in steps])
    assert all((everything == one).all(dim=(1, 2, 3)).any() for one in alone.tensor())


def sample_values(run, out, source, **options):
    values = {"generator": str(run), "output_dir": str(out), "num_samples": 3, "mask_source": source, **options}
    return parse_config(values, SampleConfig)


def test_labels_are_those_of_the_source(sides, whole, tmp_path):
    test = sides[0] / "test"
    source = {"kind": "images", "folder": str(test / "images"), "masks": str(test / "masks")}
    out = sample(sample_values(whole / "cyclegan", tmp_path / "whole", source))
    info, own = load_dataset_info(out), load_dataset_info(sides[0])
    assert info.class_names == own.class_names
    for index in range(3):
        assert replay(out / "metadata.jsonl", index + 1)[1] is True
        label = load_mask(out / f"labels/{index:06d}.png", info)
        assert label.shape == (27, 32) == np.asarray(Image.open(out / f"samples/{index:06d}.png")).shape
    crops = {"kind": "split", "dataset": str(sides[0]), "split": "test"}
    out = sample(sample_values(whole / "cut", tmp_path / "crops", crops))
    images, samples = (
        [np.asarray(Image.open(out / name / f"{i:06d}.png")) for i in range(3)] for name in ("images", "samples")
    )
    assert all((one != other).any() for one, other in zip(images, samples, strict=True))
    assert all(replay(out / "metadata.jsonl", line)[1] for line in (1, 2, 3))


def test_what_was_changed_is_a_mask(sides, whole, tmp_path):
    source = {"kind": "images", "folder": str(sides[0] / "test" / "images"), "masks": None}
    labels = {"kind": "change", "class_name": "defect", "threshold": 2}
    out = sample(sample_values(whole / "cut", tmp_path / "out", source, labels=labels))
    info = load_dataset_info(out)
    assert info.class_names == ["unchanged", "defect"]
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    shares = []
    for index, row in enumerate(rows):
        before, after = (np.asarray(Image.open(out / name / f"{index:06d}.png")) for name in ("images", "samples"))
        change = compute_change(before, after)
        mask = load_mask(out / f"labels/{index:06d}.png", info)
        assert np.array_equal(mask == 1, change >= compute_levels(change, 2))
        confidence = np.asarray(Image.open(out / f"confidence/{index:06d}.png"))
        assert confidence.min() >= 127
        shares.append(row["labels"]["changed"])
        assert shares[-1] == pytest.approx((mask == 1).mean(), abs=1e-6)
    assert 0 < max(shares) < 0.5
    assert replay(out / "metadata.jsonl", 1)[1]
    with pytest.raises(InputError, match="class_name 'unchanged': is the class of all other pixels"):
        sample_values(whole / "cut", tmp_path / "out", source, labels={"kind": "change", "class_name": "unchanged"})
    other = SimpleNamespace(kind="gan", needs=frozenset())
    with pytest.raises(
        InputError, match=r"labels.kind change: needs a generator that turns images into others, not gan"
    ):
        build_labeler(ChangeLabelsSection(kind="change"), other)


def test_a_plain_folder_of_rgb_images_is_a_source_without_labels(sides, tmp_path):
    plain, images = tmp_path / "plain", []
    plain.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        images.append(rng.integers(0, 256, (20, 24, 3), np.uint8))
        Image.fromarray(images[-1]).save(plain / f"{number}.png")
    target = shutil.copytree(sides[1], tmp_path / "target")
    for path in target.glob("*/images/*.png"):
        Image.merge("RGB", [Image.open(path), *[Image.fromarray(np.zeros((40, 48), np.uint8))] * 2]).save(path)
    values = build_values((plain, target), tmp_path / "run", {"mode": "cut"}, max_steps=1)
    values["data"]["in_channels"] = 3
    train(parse_config(values, TrainConfig), Recorder())
    source = {"kind": "images", "folder": str(plain)}
    out = sample(sample_values(tmp_path / "run", tmp_path / "out", source))
    assert not (out / "labels").exists()
    assert np.asarray(Image.open(out / "samples/000000.png")).shape == (16, 16, 3)
    with pytest.raises(InputError, match="'images': the generator was trained without masks; set masks to null"):
        sample(sample_values(tmp_path / "run", tmp_path / "other", {**source, "masks": str(plain)}))


def test_the_grain_of_the_target_is_learned(sides, tmp_path):
    """In a few seconds: power at high frequencies, relative to the variance, is an eighth of the target's before."""
    wide = {"width": 8, "discriminator_width": 8, "noise_channels": 1}
    values = build_values(
        sides,
        tmp_path / "run",
        {**CUT, **wide, "discriminator_noise": 0},
        max_steps=80,
        train_batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=0.002,
        ema_decay=0.95,
        checkpoint_every=100,
        log_every=100,
    )
    values |= {"measurement": {"every": None}, "preview": {"num_images": 0}}
    train(parse_config(values, TrainConfig), Recorder())
    generator = load_generator(tmp_path / "run")
    source, target = (
        torch.stack(
            [CropDataset(load_micrographs(side, "val"), generator.geometry, 0, False)[n]["image"] for n in range(32)]
        )
        for side in sides
    )
    drawn = generator.draw(DrawRequest(range(32), images=source)).images
    before, after, goal = (
        compute_log_power((images - images.mean()) / images.std())[..., 5:].mean() for images in (source, drawn, target)
    )
    assert goal - before > 1.5
    assert abs(goal - after) < 0.75
    assert np.corrcoef(source.flatten(), drawn.flatten())[0, 1] > 0.7


def test_noise_makes_many_images_of_one(whole):
    images = torch.rand(1, 1, 16, 16).expand(3, -1, -1, -1)
    many, one = load_generator(whole / "cyclegan"), load_generator(whole / "cut")
    drawn = many.draw(DrawRequest([1, 2, 1], images=images)).images
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    drawn = one.draw(DrawRequest([1, 2, 1], images=images)).images
    assert torch.equal(drawn[0], drawn[1])


def test_noise_of_rows_is_white_across_rows_and_constant_along_them():
    section = TranslationSection(mode="cut", noise_channels=1, row_noise_channels=2)
    noise = sample_noise(section, (4096, 6), [7, 8])
    rows = noise[:, 1:, :, 0]
    assert torch.equal(noise[:, 1:], rows[..., None].expand(-1, -1, -1, 6))
    channels = torch.cat([rows.flatten(0, 1), rows.flatten(0, 1).roll(1, dims=1)]).numpy()
    # Of both images and channels, and of their neighboring rows.
    assert np.corrcoef(channels) == pytest.approx(np.eye(8), abs=0.06)
    assert rows.std(dim=2).numpy() == pytest.approx(np.ones((2, 2)), abs=0.05)
    assert torch.equal(sample_noise(section, (4096, 9), [8])[0, 1:, :, 0], rows[1])
    assert np.corrcoef(noise[0, 0].numpy().T) == pytest.approx(np.eye(6), abs=0.06)


def test_a_style_is_constant_in_each_image_and_standard_normal():
    section = TranslationSection(mode="cut", noise_channels=1, row_noise_channels=1, style_dim=3)
    noise = sample_noise(section, (5, 6), range(2000))
    assert noise.shape == (2000, 5, 5, 6)
    styles = noise[:, 2:, 0, 0]
    assert torch.equal(noise[:, 2:], styles[..., None, None].expand(-1, -1, 5, 6))
    assert np.cov(styles.numpy().T) == pytest.approx(np.eye(3), abs=0.1)


def test_without_noise_of_rows_all_randomness_is_as_before(sides, tmp_path):
    section = TranslationSection(mode="cut", noise_channels=2)
    assert torch.equal(sample_noise(section, (20, 24), [3, 4]), randn_by_seed((2, 20, 24), [3, 4]))
    items = []
    for rows in (0, 2):
        generator = {**CUT, "noise_channels": 1, "row_noise_channels": rows}
        config = parse_config(build_values(sides, tmp_path / "run", generator), TrainConfig)
        translator, micrographs = prepare_training(config)
        items.append(build_crops(config, build_trainable(translator, config), micrographs)[5])
    off, on = items
    source = torch.Generator().manual_seed(2**62 + 5)
    assert torch.equal(off["pool"], torch.rand(1, 2, generator=source))
    assert torch.equal(off["transforms"], torch.rand(*off["transforms"].shape, generator=source))
    assert torch.equal(off["noise"], torch.randn(2, 1, 16, 16, generator=source))
    for index, count in enumerate((256, 256, 64, 16, 16)):
        assert torch.equal(off[f"places_{index}"], torch.randperm(count, generator=source)[:8])
    added = on["noise"][:, 1:]
    assert torch.equal(on["noise"][:, :1], off["noise"])
    assert torch.equal(added[0], torch.randn(2, 16, 1, generator=source).expand(-1, -1, 16))
    assert all(torch.equal(on[name], off[name]) for name in off if name != "noise")


def test_generators_saved_before_there_was_noise_of_rows_load(whole, tmp_path):
    old = shutil.copytree(whole / "cut/export", tmp_path / "old")
    settings = json.loads((old / DESCRIPTION_FILE).read_text())
    del settings["section"]["row_noise_channels"]
    (old / DESCRIPTION_FILE).write_text(json.dumps(settings))
    request = DrawRequest([1], images=torch.rand(1, 1, 16, 16))
    drawn = [load_generator(folder).draw(request).images for folder in (whole / "cut", old)]
    assert torch.equal(*drawn)


def test_rows_of_flat_micrographs_are_disturbed_alike_in_all_windows(whole):
    """320 px wide, two windows: the lines of the first go on in the second, and depend on the seed, not the width."""
    translator = load_generator(whole / "rows")
    flat = torch.zeros(2, 1, 44, 320)
    drawn = translator.draw(DrawRequest([3, 4], images=flat)).images
    lines = drawn[..., 100]
    torch.testing.assert_close(drawn, lines[..., None].expand_as(drawn), atol=1e-5, rtol=0)
    assert lines.std(dim=2).min() > 100 * 1e-5
    assert np.corrcoef(lines[:, 0].numpy())[0, 1] < 0.9
    again = translator.draw(DrawRequest([4], images=flat[:1, ..., :80])).images
    torch.testing.assert_close(again[0, ..., 40], lines[1], atol=1e-5, rtol=0)
    without = load_generator(whole / "cut").draw(DrawRequest([3], images=flat[:1])).images
    assert without.std() < 1e-5


def test_the_batch_is_tuned_with_both_phases(sides, tmp_path):
    config = parse_config(build_values(sides, tmp_path / "run", CYCLEGAN), TrainConfig)
    assert take_steps(config, 3, torch.device("cpu")).images_per_second > 0


@pytest.fixture(scope="module")
def segmenter(sides, tmp_path_factory):
    """A segmenter of the source's classes, hardly trained."""
    out = tmp_path_factory.mktemp("segmenter") / "out"
    quick = {"architecture": "unet", "steps": 2, "batch_size": 2, "base_channels": 8, "num_levels": 1}
    values = {"dataset": str(sides[0]), "output_dir": str(out), "image_size": 16, "crop_size": 16, "segmenter": quick}
    train_labeler(parse_config(values, SegmentConfig))
    return out


def test_steps_that_lose_the_masks_are_not_the_best(sides, segmenter, tmp_path):
    for least, is_kept in ((0.01, True), (1.0, False)):
        values = build_values(sides, tmp_path / str(least), CUT, max_steps=2)
        values["measurement"] |= {"segmenter": str(segmenter), "every": 2}
        values["selection"] = {"criterion": "kid", "min_mask_iou": least}
        train(parse_config(values, TrainConfig), Recorder())
        row = json.loads((tmp_path / str(least) / "metrics.jsonl").read_text().splitlines()[-1])
        assert 0.01 < row["mask_iou"] < 1
        assert (tmp_path / str(least) / "best").is_dir() == is_kept


def test_mask_iou_is_that_of_all_pixels_together():
    truth = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 255]]], np.uint8)
    predicted = iter([np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8)])
    info = DatasetInfo(name="two", class_names=["matrix", "disc"])
    labeler = SimpleNamespace(
        info=info, label=lambda image: SimpleNamespace(mask=SimpleNamespace(mask=next(predicted)))
    )
    measurement = object.__new__(Measurement)
    measurement._masks = truth
    assert measurement._compute_mask_iou(truth, labeler) == pytest.approx((3 / 5 + 2 / 4) / 2)


def test_finetuning_needs_the_same_classes_of_the_source(sides, whole, tmp_path):
    values = build_values(sides, tmp_path / "run", max_steps=1)
    del values["generator"]
    values["checkpoint"] = str(whole / "cut")
    finetune(parse_config(values, FinetuneConfig), Recorder())
    assert load_generator(tmp_path / "run").info.class_names == load_dataset_info(sides[0]).class_names
    for source, message in [
        ({"dataset": str(sides[1])}, "target: a generator of kind translation cannot be adapted to other classes"),
        (None, r"data\.source: is missing"),
    ]:
        dataset = str(sides[1] if source else sides[0])
        values["data"] |= {"source": source, "dataset": dataset}
        values["run_dir"] = str(tmp_path / "other")
        with pytest.raises(InputError, match=message):
            finetune(parse_config(values, FinetuneConfig), Recorder())


def test_what_cannot_be_is_one_line(sides, whole, segmenter, tmp_path):
    empty = tmp_path / "empty"
    (empty / "train/images").mkdir(parents=True)
    save_dataset_info(empty, load_dataset_info(sides[0]).model_copy(update={"class_names": [], "palette": []}))
    red = tmp_path / "red"
    red.mkdir()
    Image.fromarray(np.full((40, 40, 3), (90, 10, 10), np.uint8)).save(red / "a.png")
    for section, change, message in [
        ("data", {"source": {"dataset": str(empty)}}, "empty/train: the split is empty"),
        ("data", {"dataset": str(empty)}, "empty/train: the split is empty"),
        ("data", {"source": None}, r"data\.source: is missing; generator\.kind translation needs images"),
        (
            "data",
            {"source": {"dataset": str(red)}, "in_channels": 3},
            "target: images are gray, but those of .*red have",
        ),
        ("data", {"image_size": 44}, "the shortest edge of the micrographs is 40 px, less than image_size 44"),
        ("data", {"image_size": 18}, "image_size 18: must be a multiple of 4 and at least 12"),
        ("generator", {"discriminator_layers": 3}, "image_size 16: must be a multiple of 4 and at least 48"),
        ("generator", {"mode": "cut", "cycle": 3}, r"cycle 3\.0: not applicable to mode 'cut'"),
        ("generator", {"fft": 0, "fft_per_frequency": True}, "fft_per_frequency true: not applicable with fft 0"),
        ("generator", {"style_dim": 2}, "style_dim 2: not applicable to mode 'cyclegan'"),
        ("generator", {"nce": 3}, r"nce 3\.0: not applicable to mode 'cyclegan'"),
        ("selection", {"criterion": "kid", "min_mask_iou": 0.5}, r"min_mask_iou: needs measurement\.segmenter"),
        ("selection", {"min_mask_iou": 0.5}, "min_mask_iou: needs criterion 'kid', not 'auto'"),
        (
            "measurement",
            {"every": 1, "segmenter": str(segmenter)},
            "the segmenter's classes are matrix, island, film, those of the masks ferrite, pore",
        ),
        ("preview", {"solver": {"num_inference_steps": 3}}, r"preview\.solver: not applicable"),
        ("selection", {"criterion": "val_loss"}, "'val_loss': not applicable to this generator; use kid"),
    ]:
        values = build_values(sides, tmp_path / "run")
        values[section] = {**values.get(section, {}), **change}
        if section == "measurement":
            values["data"]["source"]["dataset"] = str(sides[1])
        with pytest.raises(InputError, match=message):
            train(parse_config(values, TrainConfig), Recorder())
    values = build_values(sides, tmp_path / "run", ROWS)
    values["data"]["image_size"] = 12
    with pytest.raises(InputError, match=r"image_size 12: must be at least 16 for generator\.row_noise_channels"):
        train(parse_config(values, TrainConfig), Recorder())
    values = build_values(sides, tmp_path / "run")
    values["generator"] = {"kind": "gan"}
    with pytest.raises(InputError, match=r"data\.source: not applicable to generator\.kind gan"):
        train(parse_config(values, TrainConfig), Recorder())
    other = {"kind": "split", "dataset": str(sides[1]), "split": "test"}
    for source, message in [
        (other, "target: has 2 classes, the generator was trained with 3"),
        ({"kind": "procedural", "dataset": str(sides[0])}, "'procedural': has no images"),
    ]:
        with pytest.raises(InputError, match=message):
            sample(sample_values(whole / "cut", tmp_path / "out", source))
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="images have 3 channels, the generator was trained with 1"):
        load_generator(whole / "cut").draw(DrawRequest([0], images=torch.zeros(1, 3, 16, 16)))

"""Segmenters of pixel classifiers on the features of diffusion models and of filters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import config_to_json, parse_config
from steelgen.config.features import DiffusionFeaturesSection, MultiscaleFeaturesSection
from steelgen.config.gan import GanSection
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.joint import JointDiffusionSection
from steelgen.config.segment import SegmentConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.devices import randn_by_seed
from steelgen.diffusion.noise import scale_to_flow
from steelgen.errors import InputError
from steelgen.evaluation import pixel_training
from steelgen.evaluation.iou import compute_scores
from steelgen.evaluation.labeler import label_micrograph, load_labeler
from steelgen.evaluation.pixel_training import build_features, sample_pixels, train_pixel_heads
from steelgen.evaluation.prediction import Averaging, predict_maps, predict_masks, predict_probabilities
from steelgen.evaluation.segment import train_labeler
from steelgen.generators.families import build_generator, open_network
from tests.conftest import tiny_train_config
from tests.evaluation.conftest import draw_micrograph
from tests.generators.joint import SECTION

GEOMETRY = CropGeometry(32, 32)
QUICK = {"ensemble_size": 3, "crops": 24, "steps": 150, "batch_size": 64, "learning_rate": 1e-2}
UNET = {**tiny_train_config("", "")["generator"]["unet"], "channel_mult": [1, 2, 2]}


def build(kind: str, dataset: Path, **options: Any) -> Any:
    """Builds a generator, with noise on all weights, so that none is zero."""
    micrographs = load_micrographs(dataset, "train")
    section: Any = parse_config({"unet": UNET, **options}, SemanticDiffusionSection)
    if kind == "joint":
        section = parse_config({**SECTION, **options}, JointDiffusionSection)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator: Any = build_generator(section, micrographs, GEOMETRY)
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    generator.network.eval()
    return generator


@pytest.fixture(scope="module")
def generators(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generators")
    for kind in ("semantic", "joint"):
        build(kind, dataset).save(folder / kind)
    return folder


def segment_config(dataset: Path, out: Path, features: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "dataset": str(dataset),
        "output_dir": str(out),
        "image_size": 32,
        "crop_size": 32,
        "segmenter": {"flips": False},
        "features": {**QUICK, **features},
        **options,
    }


@pytest.mark.parametrize("noise", [{}, {"prediction_type": "flow", "beta_schedule": "flow"}])
def test_the_semantic_network_sees_a_noisy_image_and_the_null_mask(dataset: Path, noise: dict[str, Any]) -> None:
    generator = build("semantic", dataset, noise={"num_train_timesteps": 100, **noise})
    source = open_network(generator, "x")
    images = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    shown: list[Any] = []
    hook = generator.network.register_forward_hook(lambda _, inputs, output: shown.append((*inputs, output)))
    with torch.no_grad():
        source.denoise(images, 30, 5)
        hook.remove()
        mean, deviation = generator.intensity
        noise_of_seed = randn_by_seed((1, 16, 24), [5]).expand(2, -1, -1, -1)
        scheduler = DDPMScheduler.from_config(generator.schedule.config)
        noisy = scheduler.add_noise((images - mean) / deviation, noise_of_seed, torch.tensor([30, 30]))
        if noise:
            alpha = generator.schedule.alphas_cumprod[30]
            noisy = scale_to_flow(noisy, alpha.sqrt(), (1 - alpha).sqrt()).float()
        expected = generator.network(noisy, torch.tensor([30, 30]), torch.zeros(2, 2, 16, 24))
    ((seen, times, mask, output),) = shown
    torch.testing.assert_close(seen, noisy, atol=1e-4, rtol=1e-4)
    assert times.tolist() == [30, 30]
    assert not mask.any()
    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)


def test_the_joint_network_sees_a_noisy_image_and_a_mask_of_pure_noise(dataset: Path) -> None:
    generator = build("joint", dataset)
    images = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    shown: list[Any] = []
    hook = generator.network.register_forward_hook(lambda _, inputs, output: shown.append(inputs))
    with torch.no_grad():
        open_network(generator, "x").denoise(images, 30, 5)
    hook.remove()
    ((inputs, image_time, mask_time),) = shown
    assert (image_time.tolist(), mask_time.tolist()) == ([31, 31], [100, 100])
    noise = randn_by_seed((2, 16, 24), [5])
    mean, deviation = generator.intensity
    scheduler = DDPMScheduler.from_config(generator.schedule.config)
    noisy = scheduler.add_noise((images - mean) / deviation, noise[:, :1].expand(2, -1, -1, -1), torch.tensor([30, 30]))
    torch.testing.assert_close(inputs[:, :1], noisy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs[:, 1:2], noise[:, 1:].expand(2, -1, -1, -1))
    assert not inputs[:, 2:].any()  # no estimate of its own


@pytest.mark.parametrize(("kind", "count"), [("semantic", 6), ("joint", 4)])
def test_features_are_those_of_the_chosen_blocks_and_timesteps(generators: Path, kind: str, count: int) -> None:
    def compute(timesteps: list[int], blocks: list[int] | None, images: torch.Tensor) -> list[torch.Tensor]:
        section = DiffusionFeaturesSection(generator=generators / kind, timesteps=timesteps, blocks=blocks)
        features: Any = build_features(section, GEOMETRY)
        with torch.inference_mode():
            return features(images)

    images = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    first, last = (compute([time], [count], images)[0] for time in (10, 60))
    assert first.shape[2:] == (16, 24)
    both = compute([10, 60], None, images)
    assert [part.shape[2:] for part in both] == sorted(part.shape[2:] for part in both)
    width = first.shape[1]
    torch.testing.assert_close(both[-1][:, both[-1].shape[1] // 2 - width :][:, :width], first)
    torch.testing.assert_close(both[-1][:, -width:], last)
    assert (first - last).abs().max() > 1e-3
    # The noise is that of the size, whatever the batch.
    torch.testing.assert_close(compute([10], [count], images[1:])[0], first[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["semantic", "joint", "multiscale"])
def test_heads_find_discs_and_are_sure_where_they_are_right(
    dataset: Path, generators: Path, tmp_path: Path, kind: str
) -> None:
    features: dict[str, Any] = {"kind": "multiscale", "sigma_max": 4}
    if kind != "multiscale":
        shutil.copytree(generators / kind, tmp_path / "generator")
        features = {"generator": str(tmp_path / "generator"), "timesteps": [0, 20]}
    (tmp_path / "segment.json").write_text(json.dumps(segment_config(dataset, tmp_path / "out", features)))
    done = CliRunner().invoke(app, ["segment", "train", "-c", str(tmp_path / "segment.json"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["mean_iou"] > 0.85
    shutil.rmtree(tmp_path / "generator", ignore_errors=True)  # the segmenter has its own copy

    labeler = load_labeler(tmp_path / "out")
    image, mask = draw_micrograph(np.random.default_rng(7), 70)
    predicted, confidence = label_micrograph(labeler, image)
    assert compute_scores(mask[None], predicted[None], 2).mean_iou > 0.85
    assert 0 <= confidence.min() <= confidence.max() <= 1.0001
    wrong = predicted != mask
    assert confidence[wrong].mean() < confidence[~wrong].mean()
    # The confidence is the agreement, not a probability.
    crop = torch.from_numpy(image[:32, :32].astype(np.float32) / 127.5 - 1)[None, None]
    with torch.inference_mode():
        maps = predict_maps(labeler.network, crop)
        probabilities = predict_probabilities(labeler.network, crop)
    assert (maps.shape[1], probabilities.shape[1]) == (3, 2)
    np.testing.assert_allclose(probabilities.sum(dim=1), 1, atol=1e-5)
    np.testing.assert_allclose(label_micrograph(labeler, image[:32, :32])[1], maps[0, 2], atol=1e-5)
    assert np.array_equal(predict_masks(labeler.network, image[None, :32, :32])[0], probabilities[0].argmax(0))


def test_views_average_probabilities_and_agreement(dataset: Path) -> None:
    values = segment_config(dataset, Path("unused"), {"kind": "multiscale", "sigma_max": 2, "steps": 20})
    config = parse_config(values, SegmentConfig)
    network, _ = train_pixel_heads(load_micrographs(dataset, "train"), None, GEOMETRY, config)
    crop = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = []
    with torch.inference_mode():
        for turn in range(4):
            turned = torch.rot90(crop, turn, (2, 3))
            for shown, back in ((turned, ()), (turned.flip(3), (3,))):
                views.append(torch.rot90(network.predict(shown).flip(back), -turn, (2, 3)))
        averaged = predict_maps(network, crop, Averaging(flips=True))
    torch.testing.assert_close(averaged, torch.stack(views).mean(dim=0), atol=1e-5, rtol=0)


def test_training_is_a_function_of_the_seed_and_validation_selects(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "discs")
    shutil.copytree(dataset / "test", tmp_path / "discs" / "val")
    features = {"kind": "multiscale", "sigma_max": 2, "steps": 40}

    def fit(name: str, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        values = segment_config(tmp_path / "discs", tmp_path / name, features, validate_every=10, **options)
        scores = train_labeler(parse_config(values, SegmentConfig))
        network: Any = load_labeler(tmp_path / name).network
        return network.heads.state_dict(), scores

    (first, scores), (again, _), (other, _) = fit("a"), fit("b"), fit("c", seed=1)
    assert len(scores["validation"]) == 4
    assert scores["validation"][-1] > 0.8
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["inputs.0.weight"], other["inputs.0.weight"])
    assert not torch.equal(first["inputs.0.weight"], first["inputs.1.weight"])  # members differ
    features.update(steps=400, learning_rate=1e-9)
    assert len(fit("d", patience=1)[1]["validation"]) < 40


def test_few_pixels_of_each_crop_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than asked for where memory would not do; balanced by class, and without ignored pixels."""

    class Gray(torch.nn.Module):
        stride = 1

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [images.expand(-1, 10, -1, -1)]

    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[0, :4, :8] = 1
    mask[0, 30:] = 255
    image = torch.arange(1024.0).view(1, 1, 32, 32)
    weights = np.array([1 / np.sqrt(928), 1 / np.sqrt(32)])
    crops = [(image, mask)] * 50 + [(image, torch.full_like(mask, 255))]
    sample = sample_pixels(Gray(), crops, 51, 8, weights, seed=0)
    assert sample.features.shape == (400, 10)
    places = sample.features[:, 0].numpy().round().astype(int)
    assert np.array_equal(mask.flatten().numpy()[places], sample.classes)
    # Without replacement the share is a little below 1 / (1 + √(928 / 32)).
    assert (sample.classes == 1).mean() == pytest.approx(1 / (1 + np.sqrt(29)), abs=0.04)
    monkeypatch.setattr(pixel_training, "_HELD_BYTES", 4 * 10 * 51 * 3)
    assert len(sample_pixels(Gray(), crops, 51, 8, weights, seed=0).classes) == 150
    with pytest.raises(InputError, match="the crops have no labeled pixels"):
        sample_pixels(Gray(), crops[50:], 1, 8, weights, seed=0)


def test_memory_grows_by_the_kept_pixels_alone() -> None:
    """All features here would take 12 GB. In a process of its own, whose memory other tests have not split."""
    program = """
import resource
import numpy as np
import torch
from steelgen.evaluation import pixel_training

class Wide(torch.nn.Module):
    stride = 1

    def forward(self, images):
        return [images.expand(-1, 480, -1, -1)]

image, mask = torch.rand(1, 1, 256, 256), torch.randint(0, 2, (1, 256, 256))
pixel_training._HELD_BYTES = 2**27
pixel_training.sample_pixels(Wide(), [(image, mask)], 1, 9, np.ones(2), 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
sample = pixel_training.sample_pixels(Wide(), [(image, mask)] * 100, 100, 10**6, np.ones(2), 0)
assert 0.9 * 2**27 < sample.features.numel() * 4 <= 2**27
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 128 MiB are kept; joining parts would take them twice.
    assert float(done.stdout) < 200


def test_what_cannot_be_is_one_line(dataset: Path, generators: Path, tmp_path: Path) -> None:
    micrographs = load_micrographs(dataset, "train")
    masks: Any = build_generator(
        parse_config({**SECTION, "image_channels": "none"}, JointDiffusionSection), micrographs, GEOMETRY
    )
    masks.save(tmp_path / "masks")
    gan: Any = build_generator(parse_config({"kind": "gan"}, GanSection), micrographs.without_masks(), GEOMETRY)
    gan.save(tmp_path / "gan")
    refining: Any = build("semantic", dataset, low_resolution={"factor": 2})
    refining.save(tmp_path / "refining")
    semantic = str(generators / "semantic")
    for features, options, message in [
        ({"generator": str(tmp_path / "none")}, {}, "no such run, checkpoint or export"),
        ({"generator": str(tmp_path / "gan")}, {}, "kind gan have no features of images; use one of kind semantic"),
        ({"generator": str(tmp_path / "masks")}, {}, "masks alone has no features of images"),
        ({"generator": str(tmp_path / "refining")}, {}, "a refining generator sees no image alone"),
        ({"generator": semantic, "timesteps": [1000]}, {}, "features.timesteps: 1000: .* has 1000 timesteps"),
        ({"generator": semantic, "blocks": [7]}, {}, "features.blocks: 7: .* has 6 blocks, from 1"),
        ({"generator": semantic, "blocks": [2, 2]}, {}, r"blocks \[2, 2\]: names one twice"),
        ({"generator": semantic}, {"in_channels": 3}, "sees images with 1 channels; in_channels is 3"),
        ({"generator": semantic}, {"crop_size": 64}, "set image_size=32 and crop_size=32, or the same multiple"),
        ({"kind": "attention"}, {}, "kind must be one of diffusion, multiscale"),
        ({}, {}, "features.generator: Field required|features.generator: is missing"),
        ({"kind": "multiscale"}, {"segmenter": {"steps": 7}}, "segmenter.steps 7: not applicable with features"),
        (
            {"kind": "multiscale"},
            {"segmenter": {"augmentation": {"cutmix_share": 0.5}}},
            "cutmix_share: not applicable",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            train_labeler(parse_config(segment_config(dataset, tmp_path / "out", features, **options), SegmentConfig))
        assert not (tmp_path / "out").exists()
    blank = micrographs.without_masks()
    values = segment_config(dataset, tmp_path / "out", {"kind": "multiscale"})
    with pytest.raises(InputError, match="discs: has no masks to train a segmenter on"):
        train_pixel_heads(blank, None, GEOMETRY, parse_config(values, SegmentConfig))


def test_resolved_configs_read_again(generators: Path) -> None:
    for features in ({"kind": "multiscale"}, {"generator": str(generators / "joint"), "blocks": [2]}):
        config = parse_config(segment_config(Path("d"), Path("o"), features), SegmentConfig)
        assert parse_config(config_to_json(config), SegmentConfig) == config
        assert isinstance(config.features, MultiscaleFeaturesSection) == ("kind" in features)

"""Semantic diffusion takes the mean gray level of its images from the training micrographs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.brightness import Brightness, measure_brightness
from steelgen.data.crops import load_micrographs
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.errors import InputError
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.families import adapt_generator, load_generator
from steelgen.training.setup import prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset

SOLVER = SolverSection(num_inference_steps=4)
FROM_NETWORK = SOLVER.model_copy(update={"brightness": "network"})
BRIGHTNESS = Brightness(classes=[0, 1, 2], levels=[-0.3, 0.0, 0.3], between=[-0.2, 0.2], within=0.1)


@pytest.fixture
def generator(tiny_dataset, tmp_path):
    """An untrained generator, whose images are noise that rarely reaches black or white."""
    config = parse_config(tiny_train_config(tiny_dataset, tmp_path / "run"), TrainConfig)
    built, _ = prepare_training(config)
    return replace(built, intensity=(0.0, 0.05))


def draw(generator, masks, solver=SOLVER, seeds=None, **fields):
    seeds = range(len(masks)) if seeds is None else seeds
    return generator.draw(DrawRequest(list(seeds), masks, solver=solver, **fields)).images


def measure(images):
    return images.mean(dim=(1, 2, 3)).double().numpy()


def test_images_are_as_bright_as_measured_for_their_phases(generator):
    """Means over many seeds are the levels of the phases, and their spread is the measured one."""
    generator.brightness = (BRIGHTNESS,)
    masks = torch.zeros(200, 16, 16, dtype=torch.int64)
    masks[100:, :, 8:] = 2
    means = measure(draw(generator, masks)).reshape(2, 100)
    between = np.interp(np.random.default_rng(0).random(10_000), [0.25, 0.75], BRIGHTNESS.between)
    spread = np.hypot(between.std(), BRIGHTNESS.within)
    assert means.mean(axis=1) == pytest.approx([-0.3, 0.0], abs=4 * spread / 10)
    assert means.std(axis=1) == pytest.approx([spread] * 2, rel=0.25)
    # All of an image's brightness is decided by its mask and seed, not by the network's taste.
    assert abs(means[0] - means[1]).max() > 0.2
    plain = measure(draw(generator, masks, FROM_NETWORK))
    assert plain.std() < 0.02


def test_whole_micrographs_share_the_brightness_of_one(generator):
    generator.brightness = (BRIGHTNESS.model_copy(update={"within": 0.3}),)
    masks = torch.zeros(24, 32, 48, dtype=torch.int64)
    means = measure(draw(generator, masks)) - BRIGHTNESS.levels[0]
    # Six crops: places vary by 0.3/√6 on average, micrographs by ±0.2.
    assert abs(means).max() < 0.2 + 3 * 0.3 / np.sqrt(6)
    assert means.std() > 0.12


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "heun", "ddim", "euler", "ddpm", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow"])
def test_every_solver_gives_images_the_same_brightness(generator, solver, prediction_type):
    beta_schedule = "flow" if prediction_type == "flow" else "squaredcos_cap_v2"
    generator.schedule = build_noise_schedule(100, beta_schedule, prediction_type, prediction_type == "v_prediction")
    generator.brightness = (BRIGHTNESS,)
    masks = torch.zeros(4, 16, 16, dtype=torch.int64)
    means = measure(draw(generator, masks, SOLVER.model_copy(update={"name": solver})))
    expected = measure(draw(generator, masks, SOLVER.model_copy(update={"num_inference_steps": 3})))
    assert means == pytest.approx(expected, abs=0.02)


def test_brightness_follows_the_noise_and_nothing_else(generator):
    generator.brightness = (BRIGHTNESS,)
    masks = torch.zeros(3, 16, 16, dtype=torch.int64)
    images = draw(generator, masks)
    assert torch.equal(draw(generator, masks[:1], seeds=[2]), images[2:])
    first, last = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    walk = [np.cos(angle) * first + np.sin(angle) * last for angle in np.linspace(0, np.pi / 2, 9)]
    means = measure(draw(generator, masks[:1].expand(9, -1, -1), seeds=[0] * 9, noise=torch.stack(walk)))
    steps = abs(np.diff(means))
    assert steps.max() < 0.5 * steps.sum()


def test_what_is_given_decides_the_brightness_of_an_image(generator):
    """Start images, known pixels, no mask, ISDM's solvers: as without measured brightness."""
    masks = torch.zeros(1, 16, 16, dtype=torch.int64)
    image = torch.full((1, 1, 16, 16), 0.4)
    known = torch.zeros(1, 16, 16, dtype=torch.bool)
    known[:, :4] = True
    respaced = RespacedSolverSection(name="respaced_ddim", respacing="4")
    cases = [
        (masks, {"start": StartImages(image, 0.5)}),
        (masks, {"images": image, "known": known}),
        (masks, {"solver": respaced}),
        (masks, {"solver": FROM_NETWORK}),
        (torch.full_like(masks, 255), {}),
        (None, {}),
    ]
    expected = [
        draw(generator, [0] if at is None else at, **fields) if at is not None else None for at, fields in cases
    ]
    plain = replace(generator, brightness=())
    for (at, fields), found in zip(cases, expected, strict=True):
        if at is None:
            request = DrawRequest([0], None, solver=SOLVER)
            assert torch.equal(generator.draw(request).images, plain.draw(request).images)
        else:
            assert torch.equal(draw(plain, at, **fields), found)
    assert not torch.equal(draw(plain, masks), draw(generator, masks))


def test_training_data_are_measured_saved_and_measured_anew(tiny_dataset, tmp_path):
    config = parse_config(tiny_train_config(tiny_dataset, tmp_path / "run"), TrainConfig)
    generator, micrographs = prepare_training(config)
    assert generator.brightness == measure_brightness(micrographs, generator.geometry)
    # Phases of the tiny micrographs have gray levels of 60, 120 and 180.
    assert (np.diff(generator.brightness[0].levels) > 0).all()
    generator.save(tmp_path / "saved")
    assert load_generator(tmp_path / "saved").brightness == generator.brightness
    other = write_tiny_dataset(tmp_path / "other", num_classes=2, splits=(("train", 3),))
    adapted, _ = adapt_generator(generator, load_micrographs(other, "train"), generator.geometry, True)
    assert adapted.brightness == measure_brightness(load_micrographs(other, "train"), generator.geometry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [0.0]}, "1 levels for 3 classes"),
        ({"classes": [0, 1, 3]}, "there are 3"),
        ({"within": -1}, "within"),
    ],
)
def test_damaged_brightness_is_named(generator, tmp_path, change, message):
    generator.save(tmp_path / "saved")
    path = tmp_path / "saved" / "generator.json"
    values = json.loads(path.read_text())
    values["brightness"][0] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load_generator(tmp_path / "saved")


def test_older_generators_leave_brightness_to_the_network(generator, tmp_path):
    generator.save(tmp_path / "saved")
    path = tmp_path / "saved" / "generator.json"
    values = json.loads(path.read_text())
    del values["brightness"]
    path.write_text(json.dumps(values))
    masks = torch.zeros(1, 16, 16, dtype=torch.int64)
    older = load_generator(tmp_path / "saved")
    assert torch.equal(draw(older, masks), draw(older, masks, FROM_NETWORK))

"""Drivers of masks against hand-drawn ones and scipy's distances."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.drivers import DriverOptions, compute_drivers
from tests.conftest import write_tiny_dataset


def draw(mask, name, coarsen=1, num_classes=2):
    return DriverOptions((name,), coarsen).draw(np.asarray(mask, np.uint8), num_classes)


def test_planes_of_a_bar():
    mask = np.zeros((9, 40), np.uint8)
    mask[3:6, 5:35] = 1
    mask[0, 0] = 255
    classes = draw(mask, "classes")
    assert np.array_equal(classes, [mask == 0, mask == 1])
    outlines = draw(mask, "outlines")[0]
    assert outlines[4, 5] == outlines[4, 4] == outlines[2, 20] == 1
    assert outlines[4, 20] == outlines[1, 20] == outlines[0, 0] == 0
    skeleton = draw(mask, "skeletons")[0]
    assert skeleton[4].sum() >= 25  # the center line
    assert skeleton.sum() <= skeleton[4].sum() + 2  # and its ends
    distance = draw(mask, "distance")[0]
    assert distance[4, 20] == pytest.approx(1 / 32)  # one pixel from the outline
    assert distance[8, 20] == pytest.approx(2 / 32)
    assert distance[0, 0] == 0
    assert draw(np.zeros((4, 4)), "distance").min() == 1


def test_coarse_drivers_are_means_of_blocks():
    mask = np.random.default_rng(0).integers(0, 2, (10, 7)).astype(np.uint8)
    fine, coarse = draw(mask, "classes"), draw(mask, "classes", coarsen=4)
    assert coarse.shape == fine.shape
    assert np.all(coarse[1, :4, :4] == fine[1, :4, :4].mean())
    assert np.all(coarse[1, 8:, 4:] == fine[1, 8:, 4:].mean())
    both = compute_drivers(np.stack([mask, 1 - mask]), 2, DriverOptions(("distance", "classes")))
    assert np.array_equal(both[0, 1:], both[1, [2, 1]])


def test_command_writes_one_image_per_plane(tmp_path):
    dataset = write_tiny_dataset(tmp_path / "tiny")
    done = CliRunner().invoke(app, ["data", "drivers", str(dataset), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert '"train": 4' in done.output
    mask = np.asarray(Image.open(dataset / "val/masks/val1.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/val/class-2/val1.png")), 255 * (mask == 2))
    assert {path.name for path in (tmp_path / "out/val").iterdir()} == {
        "class-0", "class-1", "class-2", "outlines", "skeletons", "distance"
    }  # fmt: skip
    wrong = CliRunner().invoke(app, ["data", "drivers", str(dataset), str(tmp_path / "new"), "--drivers", "edges"])
    assert wrong.exit_code == 2
    assert "'edges': must be one of classes, outlines" in wrong.output
    assert not (tmp_path / "new").exists()

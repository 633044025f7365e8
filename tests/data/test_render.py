"""Rendering of masks, and the two sides of a dataset with and without a class."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import load_dataset_info, load_mask, save_mask
from steelgen.data.render import RenderOptions, measure_levels, render_mask
from tests.conftest import write_tiny_dataset

OFF = {"edge": 0, "blur": 0, "charging": 0, "dose": 0, "noise": 0, "scan_lines": 0}
FLAT = np.zeros((200, 200), np.uint8)
STEP = np.repeat([[0] * 60 + [1] * 60], 120, 0).astype(np.uint8)


def render(mask, seed=0, levels=(0.4, 0.8), **effects):
    options = RenderOptions(levels, **{**OFF, **effects})
    return render_mask(mask, options, np.random.default_rng(seed)).astype(float) / 255


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_without_effects_classes_have_their_levels():
    mask = np.array([[0, 1, 255]], np.uint8)
    assert render(mask).tolist() == [[102 / 255, 204 / 255, 153 / 255]]  # ignored pixels: the mean


def test_noise_has_the_variance_of_its_law():
    assert render(FLAT, dose=50).var() == pytest.approx(0.4 / 50, rel=0.05)  # Poisson: level / dose
    assert render(FLAT, dose=50).mean() == pytest.approx(0.4, abs=0.002)
    assert render(FLAT, noise=0.05).std() == pytest.approx(0.05, rel=0.05)
    rows = render(FLAT, scan_lines=0.05)
    assert np.ptp(rows, axis=1).max() == 0
    assert rows.mean(axis=1).std() == pytest.approx(0.05, rel=0.2)


def test_point_spread_is_gaussian():
    from scipy.special import erf

    across = render(STEP, blur=3)[60]
    expected = 0.6 + 0.2 * erf((np.arange(120) - 59.5) / (3 * np.sqrt(2)))
    assert np.abs(across - expected).max() < 0.005


def test_edges_shine_and_the_brightening_decays():
    across = render(STEP, edge=0.15, edge_width=4)[60] - render(STEP)[60]
    assert across[59] == pytest.approx(0.15, abs=0.005)
    assert across[55] == pytest.approx(0.15 / np.e, abs=0.005)
    assert across[64] == pytest.approx(0.15 / np.e, abs=0.005)


def test_charging_is_a_ramp_of_any_direction():
    image = render(FLAT, seed=3, charging=0.2) - 0.4
    rows, columns = np.mgrid[-1:1:200j, -1:1:200j]
    plane, residual, *_ = np.linalg.lstsq(np.stack([rows.ravel(), columns.ravel()], 1), image.ravel(), rcond=None)
    assert residual[0] / image.size < 2e-6  # rounding to 8 bits
    assert 0.01 < np.abs(plane).sum() <= 0.2


def test_measured_levels_are_the_means_of_the_classes(tiny_dataset):
    micrographs = load_micrographs(tiny_dataset, "train")
    images, masks = (
        np.concatenate([part.ravel() for part in parts]) for parts in (micrographs.images, micrographs.masks)
    )
    expected = [images[masks == label].mean() / 255 for label in range(3)]
    assert measure_levels(micrographs) == pytest.approx(expected)


def test_a_folder_of_masks_becomes_a_dataset_of_exact_pairs(tiny_dataset, tmp_path):
    source = tiny_dataset / "test/masks"
    done = run("render", source, tmp_path / "out", "--like", tiny_dataset, "--count", 3, "--seed", 4)
    assert done.exit_code == 0, done.output
    info = load_dataset_info(tmp_path / "out")
    assert info.class_names == load_dataset_info(tiny_dataset).class_names
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [row["layout"] for row in rows] == ["test0.png", "test1.png", "test0.png"]
    for row in rows:
        path = tmp_path / "out" / row["file_name"]
        mask = load_mask(path.parent.parent / "masks" / path.name, info)
        assert np.array_equal(mask, load_mask(source / row["layout"], info))
    images = [np.asarray(Image.open(tmp_path / "out" / row["file_name"])) for row in rows]
    assert not np.array_equal(images[0], images[2])  # other noise
    run("render", source, tmp_path / "again", "--like", tiny_dataset, "--count", 3, "--seed", 4)
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "again" / row["file_name"])), image)


def test_layouts_come_from_a_mask_source_or_a_dataset(tiny_dataset, tmp_path):
    config = tmp_path / "layouts.json"
    config.write_text(json.dumps({"mask_source": {"kind": "augmented", "dataset": str(tiny_dataset)}}))
    done = run("render", config, tmp_path / "out", "--levels", "0.2,0.5,0.9", "--image-size", 24, "--count", 5)
    assert done.exit_code == 0, done.output
    micrographs = load_micrographs(tmp_path / "out", "train")
    assert len(micrographs) == 5
    assert {mask.shape for mask in micrographs.masks} == {(24, 24)}
    assert measure_levels(micrographs)[0] == pytest.approx(0.2, abs=0.1)
    done = run("render", tiny_dataset, tmp_path / "own", "--like", tiny_dataset)
    assert len(load_micrographs(tmp_path / "own", "train")) == 4


def test_render_names_what_is_wrong(tiny_dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.json").write_text('{"mask_source": {"kind": "none"}}')
    masks = tiny_dataset / "train/masks"
    for arguments, message in [
        ([masks], "one of --like and --levels"),
        ([masks, "--like", tiny_dataset, "--levels", "0.1,0.2"], "one of --like and --levels"),
        ([masks, "--levels", "0.1,x"], "--levels 0.1,x: must be numbers"),
        ([masks, "--levels", "0.1,0.2"], "levels: 2 gray levels for 3 classes"),
        ([masks, "--levels", "0.1,0.2,1.2"], "levels 0.1, 0.2, 1.2: must be from 0 to 1"),
        ([masks, "--like", tiny_dataset, "--noise", "-1"], "noise -1: must be at least 0"),
        ([tmp_path / "empty", "--levels", "0.1"], "empty: contains no masks"),
        ([tmp_path / "none.json", "--levels", "0.1"], "mask_source.kind 'none' makes no layouts"),
        ([tiny_dataset / "dataset.json", "--levels", "0.1"], "dataset.json: has no mask_source"),
        ([tmp_path / "gone.json", "--levels", "0.1"], "gone.json: no such file"),
    ]:
        done = run("render", arguments[0], tmp_path / "out", *arguments[1:])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
        assert not (tmp_path / "out").exists()


def test_two_sides_by_presence_of_a_class(tmp_path):
    dataset = write_tiny_dataset(tmp_path / "tiny")
    info = load_dataset_info(dataset)
    for name in ("train1", "train3", "val0"):
        path = dataset / name[:-1] / f"masks/{name}.png"
        mask = load_mask(path, info)
        save_mask(path, np.where(mask == 2, 0, mask).astype(np.uint8), info.palette)
    done = run("split", dataset, tmp_path / "sides", "--by-presence", "film", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == {
        "with": {"train": 2, "val": 1, "test": 2},
        "without": {"train": 2, "val": 1},
    }
    for side, occurs in (("with", True), ("without", False)):
        micrographs = load_micrographs(tmp_path / "sides" / side, "train")
        assert all((mask == 2).any() == occurs for mask in micrographs.masks)
        for stem, image in zip(micrographs.stems, micrographs.images, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(dataset / f"train/images/{stem}.png")))
    for name, message in [
        ("flim", "has no class 'flim' (has: matrix, island, film)"),
        ("matrix", "no image is without"),
    ]:
        done = run("split", dataset, tmp_path / "other", "--by-presence", name)
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
        assert not (tmp_path / "other").exists()

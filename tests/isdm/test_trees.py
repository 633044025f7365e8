"""ISDM configs in the dataset modes cityscapes, ade20k and celeba, run on such folders as they are."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.folder import list_splits, load_dataset_info, load_mask
from steelgen.data.palette import isdm_palette
from steelgen.generators.families import load_generator
from steelgen.isdm.trees import find_tree, import_tree_once

CONFIG = {
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,1",
    "num_res_blocks": 1,
    "attention_resolutions": "",
    "diffusion_steps": 50,
    "class_cond": True,
    "batch_size": 2,
    "lr_anneal_steps": 1,
    "save_interval": 1,
}
NAMES = {  # images, masks, instance maps; {} is one of three numbers
    "cityscapes": (
        "leftImg8bit/train/bonn/bonn_{}_leftImg8bit.png",
        "gtFine/train/bonn/bonn_{}_gtFine_labelIds.png",
        "gtFine/train/bonn/bonn_{}_gtFine_instanceIds.png",
    ),
    "ade20k": ("images/training/a{}.jpg", "annotations/training/a{}.png", None),
    "celeba": ("train/images/{}.jpg", "train/labels/{}.png", None),
}


def write_tree(root, mode, values=(0, 3)):
    rng = np.random.default_rng(0)
    mask = np.tile(np.array(values, np.uint8), (20, 12))
    contents = (rng.integers(0, 256, (20, 24, 3), np.uint8), mask, mask.astype(np.uint16) * 1000)
    for number in range(3):
        for name, content in zip(NAMES[mode], contents, strict=True):
            if name:
                path = root / name.format(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEELGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def run(tmp_path, config, *arguments):
    (tmp_path / "isdm.json").write_text(json.dumps(config))
    return CliRunner().invoke(app, [*arguments, "-c", str(tmp_path / "isdm.json")])


@pytest.mark.parametrize(
    ("mode", "num_classes", "read", "stem"),
    [
        ("cityscapes", 34, {0, 3}, "bonn_0_leftImg8bit"),
        ("ade20k", 151, {150, 2}, "a0"),
        ("ade20k", 150, {255, 2}, "a0"),
        ("celeba", 19, {0, 3}, "0"),
    ],
)
def test_masks_are_read_as_isdm_reads_them(tmp_path, mode, num_classes, read, stem):
    tree = find_tree(write_tree(tmp_path / "data", mode), mode, num_classes)
    assert import_tree_once(tree)
    assert not import_tree_once(tree)
    info = load_dataset_info(tree.folder)
    assert list_splits(tree.folder) == ["train"]
    assert set(np.unique(load_mask(tree.folder / f"train/masks/{stem}.png", info))) == read
    assert (info.num_classes, info.palette) == (num_classes, isdm_palette(num_classes))
    assert (tree.folder / "train/instances").is_dir() == (mode != "ade20k")


def test_a_changed_folder_is_imported_anew(tmp_path):
    root = write_tree(tmp_path / "data", "celeba")
    before = find_tree(root, "celeba", 19)
    os.utime(root / "train/labels/0.png", (1, 1))
    assert find_tree(root, "celeba", 19).folder != before.folder
    assert find_tree(root, "celeba", 20).folder != before.folder


@pytest.mark.parametrize("mode", NAMES)
def test_training_on_such_a_folder(tmp_path, mode, cache):
    config = {
        **CONFIG,
        "dataset_mode": mode,
        "data_dir": str(write_tree(tmp_path / "data", mode)),
        "root_log_dir": str(tmp_path / "OUT"),
        "num_classes": 151,
        "no_instance": mode == "ade20k",
    }
    result = run(tmp_path, config, "train", "--set", "preview.num_images=0")
    assert result.exit_code == 0, result.output
    assert f"imported {tmp_path / 'data'} ({mode}) to {next(cache.iterdir())}" in result.stderr
    generator = load_generator(tmp_path / "OUT/train_data_d=50_c=151")
    assert generator.info.num_classes == 151
    assert generator.network.config.instance_edges == (mode != "ade20k")
    result = CliRunner().invoke(app, ["config", "convert", str(tmp_path / "isdm.json")])
    assert "imported" not in result.stderr
    assert json.loads(result.stdout)["data"]["dataset"] == str(next(cache.iterdir()))


@pytest.mark.parametrize(
    ("mode", "break_it", "message"),
    [
        ("cityscapes", "leftImg8bit", "leftImg8bit: no such folder"),
        ("ade20k", "annotations", "images/training/a0.jpg: has no training/a0.png in annotations/"),
        ("celeba", "train/labels", "train: has no labels/"),
        ("celeba", "", "data: no such folder"),
        ("cityscapes", None, "value 40 is not one of the 34 classes"),
    ],
)
def test_bad_layouts_are_one_line(tmp_path, mode, break_it, message, cache):
    root = write_tree(tmp_path / "data", mode, (0, 3 if break_it is not None else 40))
    if break_it is not None:
        (root / break_it).rename(tmp_path / "elsewhere")
    config = {**CONFIG, "dataset_mode": mode, "data_dir": str(root), "num_classes": 34}
    result = run(tmp_path, config, "train")
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("steelgen:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not cache.exists() or not list(cache.iterdir())

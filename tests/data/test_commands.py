"""The commands of `steelgen data`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner, Result

from steelgen.cli.app import app
from steelgen.data.folder import load_dataset_info, load_metadata
from tests.data.samples import BUNDLED, save_indices, save_noise

_UHCS = str(BUNDLED / "uhcs")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_import_reports_splits_bars_and_pixel_sizes(tmp_path: Path) -> None:
    tags = [(34682, "s", 0, "[Scan]\r\nPixelWidth=2e-008\r\n[Image]\r\nResolutionY=400\r\n", True)]
    for stem, extra in (("a", tags), ("b", [])):
        image = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "images" / "uhcs0007.png"))
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "set" / "images" / f"{stem}.tif", image, extratags=extra)
        save_indices(tmp_path / "set" / "masks" / f"{stem}.png", np.zeros(image.shape, np.uint8))
    done = _run("import", "folder", tmp_path / "set", tmp_path / "out", "--split", "0.5,0,0.5")
    assert done.exit_code == 0, done.output
    assert "1 images in train, 1 images in test" in done.output
    assert "no images in val; `steelgen data split" in done.output
    assert "cropped the data bar of 1 images" in done.output
    assert "known for 1 of 2 images" in done.output
    rows = {Path(name).stem: row for name, row in load_metadata(tmp_path / "out").items()}
    assert rows["a"]["pixel_size_um"] == pytest.approx(0.02)
    assert rows["a"]["data_bar_height"] == 84
    given = _run("import", "folder", tmp_path / "set", tmp_path / "given", "--pixel-size-um", "0.5", "--split", "1,0,0")
    assert given.exit_code == 0
    assert load_dataset_info(tmp_path / "given").pixel_size_um == 0.5


def test_tile_and_split(tmp_path: Path) -> None:
    tiles = _run("tile", _UHCS, tmp_path / "tiles", "--size", 200, "--min-foreground", 0.1)
    assert tiles.exit_code == 0
    assert "tiles in train" in tiles.output
    split = _run("split", tmp_path / "tiles", tmp_path / "out", "--stratify", "--seed", 3)
    assert split.exit_code == 0
    assert "images in train" in split.output
    by_fold = _run("split", _UHCS, tmp_path / "folds", "--by", "cv_fold", "--fractions", "0.5,0.25,0.25")
    assert by_fold.exit_code == 0


def test_quiet_and_json(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        save_noise(tmp_path / "set" / split / "images" / f"{split}.png", seed=number)
        mask = np.zeros((40, 50), np.uint8)
        mask[3:7, 3:8] = mask[20:24, 9:12] = 1
        save_indices(tmp_path / "set" / split / "masks" / f"{split}.png", mask)
    imported = _run("import", "folder", tmp_path / "set", tmp_path / "out", "--json")
    assert json.loads(imported.stdout) == {
        "folder": str(tmp_path / "out"),
        "class_names": ["class_0", "class_1"],
        "images": {"train": 1, "test": 1},
        "pixel_size_um": None,
        "cropped_to_masks": 0,
        "data_bars_cropped": 0,
    }
    checked = _run("check", tmp_path / "out", "--json", "--out", tmp_path / "page")
    found = json.loads(checked.stdout)
    assert found["problems"] == []
    assert found["splits"]["test"]["sizes"] == [[50, 40]]
    assert found["splits"]["test"]["classes"]["class_1"] == {"share": 32 / 2000, "islands": 2, "median_area_px": 16}
    assert (tmp_path / "page" / "check.html").is_file()
    for arguments in (("import", "folder", tmp_path / "set", tmp_path / "again"), ("check", tmp_path / "out")):
        quiet = _run(*arguments, "--quiet")
        assert (quiet.exit_code, quiet.output) == (0, "")
    (tmp_path / "out" / "test" / "images" / "test.png").write_bytes(b"none")
    broken = _run("check", tmp_path / "out", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["problems"][0]["file"] == "test/images/test.png"
    refused = _run("import", "folder", tmp_path / "set", tmp_path / "again", "--quiet")
    assert refused.exit_code == 2
    assert "already in use" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "cocoo", "x", "y"), "'cocoo'"),
        (("import", "coco", "nowhere", "y"), "nowhere: no such file or folder"),
        (("import", "coco", "x", "y", "--percentiles", "9,1"), "--percentiles 9,1"),
        (("import", "coco", "x", "y", "--data-bar", "some"), "--data-bar some"),
        (("import", "coco", "x", "y", "--split", "1,1,1"), "split '1,1,1'"),
        (("import", "coco", "x", "y", "--pixel-size-um", "nan"), "--pixel-size-um nan"),
        (("import", "coco", "x", "y", "--layout", "isdm"), "--layout: does not apply to coco"),
        (("tile", _UHCS, "y", "--size", "9999"), "smaller than a tile of 9999"),
        (("split", _UHCS, "y", "--by", "steel"), "has no 'steel' to split by"),
        (("split", _UHCS, _UHCS), "already in use"),
        (("fetch", "imagenet", "y"), "available: ma-islands"),
        (("check", "nowhere"), "nowhere: no such dataset folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _run(*arguments)
    assert done.exit_code == 2
    line = done.output.strip().splitlines()[-1]
    assert line.startswith("steelgen: ")
    assert message in line
    assert not (tmp_path / "y").exists()

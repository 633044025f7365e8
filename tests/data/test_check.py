from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.check import check_dataset
from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import DatasetInfo, list_pairs, load_dataset_info, load_pair, save_dataset_info, save_mask
from steelgen.data.sheets import build_contact_sheet, build_thumbnail
from steelgen.errors import InputError
from tests.data.samples import BUNDLED, save_noise

_INFO = DatasetInfo(name="small", class_names=["matrix", "island"])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "small"
    save_dataset_info(tmp_path / "small", _INFO)
    for seed, (split, stem) in enumerate((("train", "a"), ("train", "b"), ("val", "c"))):
        save_noise(root / split / "images" / f"{stem}.png", seed=seed)
        (root / split / "masks").mkdir(exist_ok=True)
        mask = np.zeros((40, 50), np.uint8)
        mask[2:6, 2:6] = mask[10:12, 10:12] = 1
        mask[0, 0] = 255
        save_mask(root / split / "masks" / f"{stem}.png", mask, _INFO.palette)
    return root


def test_statistics_of_a_valid_folder(dataset: Path) -> None:
    report = check_dataset(dataset)
    assert report.problems == []
    train = report.splits["train"]
    assert (train.num_images, train.ignored_pixels, train.sizes) == (2, 2, {(50, 40): 2})
    assert train.class_pixels.tolist() == [2 * (2000 - 21), 40]
    assert sorted(train.island_areas[1].tolist()) == [4, 4, 16, 16]
    assert train.intensity.sum() == 2 * 2000
    assert [thumbnail.caption for thumbnail in report.thumbnails] == ["train/a", "train/b", "val/c"]


@pytest.mark.parametrize("described", [True, False])
def test_images_and_masks_without_splits_are_a_training_split(dataset: Path, described: bool) -> None:
    folder, before = dataset / "train", check_dataset(dataset).splits["train"]
    if described:
        save_dataset_info(folder, _INFO)
    (folder / "rejects.txt").write_text("b\n")
    report = check_dataset(folder)
    assert (report.problems, list(report.splits)) == ([], ["train"])
    found = report.splits["train"]
    assert found.num_images == before.num_images
    assert found.class_pixels.tolist() == before.class_pixels.tolist()
    assert [pair.stem for pair in list_pairs(folder, "train")] == ["a"]
    mask = load_pair(list_pairs(folder, "train")[0], load_dataset_info(folder))[1]
    assert np.array_equal(mask, load_pair(list_pairs(dataset, "train")[0], _INFO)[1])
    (folder / "masks" / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"train/images/a\.png: has no mask of the same name, 1 of \d+ images have none"
    ):
        list_pairs(folder, "train")


def test_a_folder_of_images_beside_other_folders_has_no_masks(dataset: Path) -> None:
    plain = dataset / "train" / "images"
    (plain / "masks").mkdir()
    assert load_dataset_info(plain).class_names == []
    assert [pair.mask for pair in list_pairs(plain, "train")] == [None, None]


def test_bundled_uhcs_has_no_problems() -> None:
    report = check_dataset(BUNDLED / "uhcs")
    assert report.problems == []
    assert {split: summary.num_images for split, summary in report.splits.items()} == {"train": 16, "val": 4, "test": 4}


def test_all_problems_are_reported(dataset: Path) -> None:
    masks = dataset / "train" / "masks"
    save_noise(dataset / "train" / "images" / "lonely.png")
    save_noise(dataset / "train" / "images" / "wide.png", width=60, seed=9)
    shutil.copy(masks / "a.png", masks / "wide.png")
    Image.fromarray(np.full((40, 50), 7, np.uint8)).save(masks / "a.png")
    image = dataset / "train" / "images" / "b.png"
    image.write_bytes(image.read_bytes()[:-200])
    rows = [
        {"file_name": f"{split}/images/{stem}.png", "parent": "p"} for split, stem in (("train", "a"), ("val", "c"))
    ]
    rows.append({"file_name": "train/images/gone.png"})
    (dataset / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (dataset / "test" / "images").mkdir(parents=True)
    found = {
        problem.file: problem.message for problem in check_dataset(dataset).problems if problem.file != "metadata.jsonl"
    }
    assert found["train/images/lonely.png"] == "has no mask of the same name"
    assert "the mask is 50x40, but its image is 60x40" in found["train/masks/wide.png"]
    assert "mask index 7 is not below num_classes 2" in found["train/masks/a.png"]
    assert "not a readable image" in found["train/images/b.png"]
    assert found["test/masks"] == "no such folder"
    assert found["test"] == "the split is empty"
    about_metadata = [
        problem.message for problem in check_dataset(dataset).problems if problem.file == "metadata.jsonl"
    ]
    assert about_metadata == [
        "train/images/gone.png is missing",
        "parent p has images in train and val: a leak",
    ]


@pytest.mark.parametrize("symmetry", range(8))
def test_rotated_copy_in_another_split_is_a_leak(dataset: Path, symmetry: int) -> None:
    image = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "images" / "uhcs0007.png"))[:400, :400]
    turned = np.rot90(image, symmetry % 4)
    turned = turned[:, ::-1] if symmetry >= 4 else turned
    # With another brightness and other noise, like a second exposure.
    noise = np.random.default_rng(0).normal(0, 4, turned.shape)
    again = (turned * 0.9 + 20 + noise).clip(0, 255).astype(np.uint8)
    shrunken = [shrink_image(np.ascontiguousarray(array)) for array in (image, again)]
    assert len(find_duplicates(shrunken, ["train", "test"])) == 1
    assert find_duplicates(shrunken, ["train", "train"]) == []


def test_overlay_colors_only_what_is_annotated(dataset: Path) -> None:
    image, mask = load_pair(list_pairs(dataset, "train")[0], load_dataset_info(dataset))
    thumbnail = build_thumbnail(image, mask, _INFO.palette)
    assert (thumbnail[20, 20] == image[20, 20]).all()
    assert thumbnail[3, 3, 0] > thumbnail[3, 3, 2]
    sheet = build_contact_sheet([("train/a", thumbnail)] * 5, [("island", (230, 159, 0))])
    assert sheet.size[0] > 4 * 50


class TestCommand:
    def test_exit_codes(self, dataset: Path) -> None:
        runner = CliRunner()
        fine = runner.invoke(app, ["data", "check", str(dataset)])
        assert fine.exit_code == 0
        assert (dataset / "check" / "contact_sheet.png").is_file()
        (dataset / "train" / "masks" / "a.png").unlink()
        wrong = runner.invoke(app, ["data", "check", str(dataset)])
        assert wrong.exit_code == 1
        assert "train/images/a.png" in wrong.output
        missing = runner.invoke(app, ["data", "check", str(dataset / "nowhere")])
        assert missing.exit_code == 2
        assert missing.output.count("\n") == 1

    def test_import_reports_its_result(self, tmp_path: Path) -> None:
        command = ["data", "import", "ma-islands", str(BUNDLED / "ma_islands"), str(tmp_path / "out")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0
        assert "2 classes (background, ma_island)" in done.output
        again = CliRunner().invoke(app, command)
        assert again.exit_code == 2
        assert "already in use" in again.output


def test_folder_without_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a dataset folder"):
        check_dataset(tmp_path)

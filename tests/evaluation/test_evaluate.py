"""`evaluate` from folder to figures, and its errors for unusable folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from steelgen.config.base import parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.folder import save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.sets import load_evidence
from tests.evaluation.conftest import INFO, save_pairs

QUICK = {"architecture": "unet", "steps": 4, "batch_size": 4, "base_channels": 8, "num_levels": 2}
FEATURES = {"kinds": "tests.evaluation.test_features:mean_features"}


def build_config(generated: Path, dataset: Path, out: Path, **more: object) -> EvaluateConfig:
    values = {"generated": str(generated), "dataset": str(dataset), "output_dir": str(out)}
    quick = {"segmenter": QUICK, "features": FEATURES, "memorization": {"max_images": 2, "search_size": 16}}
    return parse_config({**values, **quick, **more}, EvaluateConfig)


@pytest.fixture(autouse=True)
def _use_cache(cache: Path) -> None:
    pass


def find(result: dict, metric: str, compared: str) -> dict:
    return next(f for f in result["figures"] if f["metric"] == metric and compared in f["compared"])


def test_evaluate_writes_every_figure_with_its_floor(generated: Path, dataset: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    result = evaluate(build_config(generated, dataset, tmp_path / "out"), lines.append)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    assert lines
    for reference in ("test", "train"):
        for metric in ("FD", "KID"):
            figure = find(result, f"{metric}-tests.evaluation.test_features:mean_features", f"generated vs {reference}")
            assert figure["floor"] is not None
            assert figure["n"] == [8, 8]
            assert figure["seed"] == 0
    for figure in result["figures"]:
        low, high = figure["interval"]
        assert low is None or low <= figure["value"] <= high, figure
    assert sum(figure["interval"][0] is not None for figure in result["figures"]) > 0.8 * len(result["figures"])
    miou = find(result, "mIoU", "masks")
    assert 0 <= miou["value"] <= 1
    assert len(result["details"]["faithfulness"]["generated"]["image_iou"]) == 8


def test_a_segmenter_that_cannot_judge_a_class_says_so(generated: Path, dataset: Path, tmp_path: Path) -> None:
    # One step at a rate of nothing: islands, whose share is small, are hardly ever seen.
    blind = {**QUICK, "steps": 1, "learning_rate": 1e-9}
    result = evaluate(build_config(generated, dataset, tmp_path / "out", segmenter=blind))
    figures = [find(result, f"IoU {name}", "masks") for name in ("matrix", "island")]
    details = result["details"]["faithfulness"]
    unseen = [figure["floor"] < 0.3 for figure in figures]
    assert any(unseen)
    assert details["can_judge"] == [not each for each in unseen]
    for figure, each in zip(figures, unseen, strict=True):
        name = figure["metric"].removeprefix("IoU ")
        assert (figure["note"] == "cannot be judged: below 0.3 on real images") == each
        assert any(f"the segmenter cannot judge {name}" in line for line in result["warnings"]) == each
        assert (name in result["verdict"][2]["answer"] or all(unseen)) == each or not each
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "cannot be judged: below 0.3 on real images" in page


def test_few_images_for_many_features_are_warned_about(generated: Path, dataset: Path, tmp_path: Path) -> None:
    config = build_config(generated, dataset, tmp_path / "out", features={"kinds": "efficientnet-lite0"})
    result = evaluate(config)
    assert any("8 images for 1280 features" in line for line in result["warnings"])
    assert find(result, "FD-EfficientNetLite0", "test")["value"] > 0


def test_a_plain_folder_without_masks_is_evaluated(generated: Path, dataset: Path, tmp_path: Path) -> None:
    plain = tmp_path / "elsewhere"
    shutil.copytree(generated / "samples", plain)
    for path in plain.iterdir():
        Image.open(path).convert("RGB").resize((48, 48)).save(path)
    config = build_config(plain, dataset, tmp_path / "out", geometry={"image_size": 32, "in_channels": 1})
    result = evaluate(config)
    assert any("generated images have no masks" in line for line in result["warnings"])
    assert any("resized from 48 to 32" in line for line in result["notes"])
    assert not [figure for figure in result["figures"] if figure["section"] == "faithfulness"]


def test_samples_in_every_layout_are_the_same_set(generated: Path, dataset: Path, tmp_path: Path) -> None:
    as_dataset = tmp_path / "dataset"
    shutil.copytree(generated / "samples", as_dataset / "train" / "images")
    shutil.copytree(generated / "labels", as_dataset / "train" / "masks")
    shutil.copy(generated / "sampling.json", as_dataset)
    numbered = tmp_path / "numbered"
    for part in ("samples", "labels"):
        for index, path in enumerate(sorted((generated / part).iterdir())):
            folder = numbered / part / f"{index // 3:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
    shutil.copy(generated / "sampling.json", numbered)
    expected, notes = load_evidence(build_config(generated, dataset, tmp_path / "out"))
    assert notes == []
    for folder in (as_dataset, as_dataset / "train", numbered):
        found, notes = load_evidence(build_config(folder, dataset, tmp_path / "out"))
        assert notes == []
        assert found.geometry == expected.geometry
        np.testing.assert_array_equal(found.generated.images, expected.generated.images)
        np.testing.assert_array_equal(found.generated.masks, expected.generated.masks)


def test_a_foreign_set_of_mixed_file_types_is_the_same_set(generated: Path, dataset: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "images").mkdir(parents=True)
    for index, path in enumerate(sorted((generated / "samples").iterdir())):
        image = np.asarray(Image.open(path))
        if index % 4 == 1:
            Image.fromarray(image.astype(np.uint16) * 257).save(foreign / "images" / f"{path.stem}.tif")
        elif index % 4 == 2:
            Image.fromarray(np.repeat(image[..., None], 3, axis=2)).save(foreign / "images" / f"{path.stem}.bmp")
        elif index % 4 == 3:
            Image.fromarray(image).save(foreign / "images" / f"{path.stem}.PNG")
        else:
            Image.fromarray(image).save(foreign / "images" / f"{path.stem}.tiff")
    shutil.copytree(generated / "labels", foreign / "masks")
    expected = evaluate(build_config(generated, dataset, tmp_path / "ours"))
    found = evaluate(build_config(foreign, dataset, tmp_path / "theirs"))
    assert found["figures"] == expected["figures"]
    assert any("crop_size 32 assumed" in line for line in found["notes"])


def test_real_data_as_a_generator_scores_at_the_floor(dataset: Path, tmp_path: Path) -> None:
    save_pairs(tmp_path / "new" / "test" / "images", tmp_path / "new" / "test" / "masks", 4, 96, seed=77)
    save_dataset_info(tmp_path / "new", INFO)
    images, masks = cut_crops(load_micrographs(tmp_path / "new", "test"), CropGeometry(32, 32), 60)
    root = tmp_path / "real"
    (root / "samples").mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        Image.fromarray(image).save(root / "samples" / f"{number:03d}.png")
        save_mask(root / "labels" / f"{number:03d}.png", mask, INFO.palette)
    result = evaluate(build_config(root, dataset, tmp_path / "out", memorization={"max_images": 20, "search_size": 16}))
    kid = find(result, "KID-tests.evaluation.test_features:mean_features", "generated vs test")
    assert kid["value"] <= kid["floor"] + 3 * kid["spread"]
    standings = {answer["question"]: answer["standing"] for answer in result["verdict"]}
    assert standings["Do the images match their masks?"] == "good"
    assert find(result, "copies (share with d1/d2 < 1/3)", "train")["value"] == 0
    assert standings["Are the images more than copies?"] != "poor"


def damage_empty(folder: Path) -> None:
    shutil.rmtree(folder / "samples")
    (folder / "samples").mkdir()


def damage_one_image(folder: Path) -> None:
    for path in sorted((folder / "samples").iterdir())[1:]:
        path.unlink()


def damage_sizes(folder: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "samples" / "003.png")


def damage_shape(folder: Path) -> None:
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(folder / "samples" / "000.png")


def damage_mask_index(folder: Path) -> None:
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(folder / "labels" / "002.png")


def damage_twice(folder: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "samples" / "004.bmp")


def damage_sampling(folder: Path) -> None:
    (folder / "sampling.json").write_text("[1]")


def damage_mask_missing(folder: Path) -> None:
    (folder / "labels" / "004.png").unlink()


def damage_truncate(folder: Path) -> None:
    path = folder / "samples" / "001.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_empty, "samples: 0 images; at least 4 are needed"),
        (damage_one_image, "samples: 1 images; at least 4 are needed"),
        (damage_sizes, "003.png: is 40x40 px, but 000.png is 32x32 px"),
        (damage_shape, "000.png: is 40x32 px; generated images must be square"),
        (damage_mask_index, "002.png: mask index 7 is not below num_classes 2"),
        (damage_mask_missing, "004.png: no mask with the same stem in"),
        (damage_twice, "004.png: 004.bmp has the same stem"),
        (damage_sampling, "sampling.json: must be a JSON object"),
        (damage_truncate, "001.png: not a readable image"),
        (shutil.rmtree, "no such folder of generated images"),
    ],
)
def test_unusable_folders_give_one_line_and_no_output(
    damage: object, message: str, generated: Path, dataset: Path, tmp_path: Path
) -> None:
    damage(generated)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        evaluate(build_config(generated, dataset, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_unusable_input(generated: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'val'"):
        evaluate(build_config(generated, dataset, tmp_path / "out", held_out_split="val"))
    with pytest.raises(InputError, match="nothing is held out"):
        evaluate(build_config(generated, dataset, tmp_path / "out", held_out_split="train"))
    with pytest.raises(InputError, match="device 'nowhere'"):
        evaluate(build_config(generated, dataset, tmp_path / "out", device="nowhere"))
    with pytest.raises(InputError, match="output folder is already in use"):
        evaluate(build_config(generated, dataset, dataset))


def test_constant_images_are_noted_and_undefined_figures_are_null(
    generated: Path, dataset: Path, tmp_path: Path
) -> None:
    for part, level in (("samples", 90), ("labels", 0)):
        for path in (generated / part).iterdir():
            Image.fromarray(np.full((32, 32), level, np.uint8)).save(path)
    result = evaluate(build_config(generated, dataset, tmp_path / "out"))
    assert "8 of 8 generated images are constant" in result["notes"]
    # Masks of one class have no chords and no islands to compare.
    chords = find(result, "chord length W1 (px) of masks", "test")
    assert chords["value"] is None
    assert chords["interval"] == [None, None]
    assert find(result, "phase fraction (points) of masks", "test")["value"] > 1
    assert find(result, "copies (share with d1/d2 < 1/3)", "train")["value"] == 0
    for figure in result["figures"]:
        assert figure["value"] is None or np.isfinite(figure["value"])
    texts = re.findall(r">([^<]*)", (tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not [text for text in texts if "nan" in text.lower().split()]


def test_conversion_of_rgb_to_gray_is_noted(generated: Path, dataset: Path, tmp_path: Path) -> None:
    for path in sorted((generated / "samples").iterdir())[:3]:
        gray = np.asarray(Image.open(path)).astype(int)
        Image.fromarray(np.stack([gray, gray, (gray + 9).clip(0, 255)], axis=2).astype(np.uint8)).save(path)
    _, notes = load_evidence(build_config(generated, dataset, tmp_path / "out"))
    assert "3 of 8 generated images are RGB and were converted to gray (ITU-R 601 luma)" in notes
    in_color, notes = load_evidence(build_config(generated, dataset, tmp_path / "out", geometry={"in_channels": 3}))
    assert notes == []
    assert in_color.generated.images.shape == in_color.held_out.images.shape == (8, 32, 32, 3)


def nan_features(images: torch.Tensor) -> torch.Tensor:
    return torch.full((len(images), 4), float("nan"))


def test_nan_features_end_the_evaluation(generated: Path, dataset: Path, tmp_path: Path) -> None:
    config = build_config(generated, dataset, tmp_path / "out", features={"kinds": f"{__name__}:nan_features"})
    with pytest.raises(InputError, match="nan_features: image 0 has features that are infinite or NaN"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_command_prints_config_and_table(generated: Path, dataset: Path, tmp_path: Path) -> None:
    from steelgen.cli.app import app

    path = tmp_path / "evaluate.json"
    out = tmp_path / "out"
    path.write_text(json.dumps(build_config(generated, dataset, out).model_dump(mode="json")))
    dry = CliRunner().invoke(app, ["evaluate", "-c", str(path), "--dry-run"])
    assert dry.exit_code == 0
    assert '"num_real": null' in dry.output
    assert not out.exists()
    done = CliRunner().invoke(app, ["evaluate", "-c", str(path), "--set", "seed=3"])
    assert done.exit_code == 0
    assert "boundary F1" in done.output
    wrong = CliRunner().invoke(app, ["evaluate", "-c", str(path), "--set", "segmenter.step=3"])
    assert wrong.exit_code == 2
    assert "did you mean 'steps'" in wrong.output

"""Pseudo-labels of a folder of images."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from steelgen.config.base import parse_config
from steelgen.config.segment import SegmentConfig
from steelgen.data.check import check_dataset
from steelgen.data.folder import list_pairs, load_dataset_info, load_metadata, load_pair, save_metadata
from steelgen.errors import InputError
from steelgen.evaluation.iou import compute_scores
from steelgen.evaluation.labeled_folders import label_folder
from steelgen.evaluation.labeler import label_micrograph, load_labeler
from steelgen.evaluation.segment import train_labeler
from steelgen.evaluation.windows import _starts
from steelgen.files import save_tensors
from tests.evaluation.conftest import draw_micrograph


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmenter") / "out"
    values = {
        "dataset": str(dataset),
        "output_dir": str(out),
        "image_size": 32,
        "crop_size": 32,
        "segmenter": {
            "architecture": "unet",
            "steps": 30,
            "batch_size": 8,
            "base_channels": 8,
            "num_levels": 2,
            "learning_rate": 1e-2,
        },
    }
    scores = train_labeler(parse_config(values, SegmentConfig))
    assert scores["mean_iou"] > 0.85
    assert scores["validation"] == []
    assert json.loads((out / "scores.json").read_text()) == scores
    return out


def test_a_validation_split_chooses_the_step(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "discs")
    shutil.copytree(dataset / "test", tmp_path / "discs" / "val")
    quick = {"architecture": "unet", "steps": 9, "batch_size": 4, "base_channels": 8, "num_levels": 1}
    values = {"dataset": str(tmp_path / "discs"), "image_size": 32, "crop_size": 32, "segmenter": quick}
    more = {"validate_every": 3, "output_dir": str(tmp_path / "out")}
    scores = train_labeler(parse_config({**values, **more}, SegmentConfig))
    assert len(scores["validation"]) == 3
    # Validation and test are the same micrographs here; flips make the small difference.
    assert scores["mean_iou"] == pytest.approx(max(scores["validation"]), abs=0.05)
    stopped = {"patience": 1, "validate_every": 1, "output_dir": str(tmp_path / "stopped")}
    slow = {**values, "segmenter": {**quick, "steps": 50, "learning_rate": 1e-9}}
    assert len(train_labeler(parse_config({**slow, **stopped}, SegmentConfig))["validation"]) < 50
    twice = {**values, "val_split": "test", "output_dir": str(tmp_path / "twice")}
    with pytest.raises(InputError, match="val_split: 'test' is also the train_split or test_split"):
        train_labeler(parse_config(twice, SegmentConfig))
    assert not (tmp_path / "twice").exists()


def test_a_segmenter_from_before_the_choice_of_architectures_still_labels(trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    described = json.loads((old / "segmenter.json").read_text())
    kept = ("steps", "batch_size", "learning_rate", "base_channels", "num_levels", "train_size", "boundary_tolerance")
    described["config"]["segmenter"] = {key: described["config"]["segmenter"][key] for key in kept}
    for key in ("val_split", "validate_every", "patience"):
        del described["config"][key]
    (old / "segmenter.json").write_text(json.dumps(described))
    labeler = load_labeler(old)
    image, mask = draw_micrograph(np.random.default_rng(7), 64)
    assert compute_scores(mask[None], label_micrograph(labeler, image)[0][None], 2).mean_iou > 0.75


def test_windows_cover_every_length() -> None:
    for length in range(32, 200):
        starts = _starts(length, 32)
        assert starts[0] == 0
        assert starts[-1] == length - 32
        assert max(np.diff(starts), default=0) <= 17


@pytest.mark.parametrize("shape", [(100, 141), (20, 50), (32, 32)])
def test_images_of_any_size_are_labeled(trained: Path, shape: tuple[int, int]) -> None:
    image, mask = draw_micrograph(np.random.default_rng(7), 160)
    image, mask = image[: shape[0], : shape[1]], mask[: shape[0], : shape[1]]
    predicted, confidence = label_micrograph(load_labeler(trained), image)
    assert predicted.shape == confidence.shape == shape
    assert compute_scores(mask[None], predicted[None], 2).mean_iou > 0.75
    assert 0.5 <= confidence.min() <= confidence.max() <= 1.0001
    wrong = predicted != mask
    assert confidence[wrong].mean() < confidence[~wrong].mean()


def test_a_folder_gets_masks_and_confidence(trained: Path, dataset: Path, tmp_path: Path) -> None:
    from steelgen.cli.segment import segment_app

    done = CliRunner().invoke(
        segment_app, ["predict", str(trained), str(dataset / "test" / "images"), str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    for name in ("000.png", "001.png"):
        mask = Image.open(tmp_path / "out" / "masks" / name)
        assert mask.mode == "P"
        assert mask.size == (96, 96)
        assert Image.open(tmp_path / "out" / "confidence" / name).mode == "L"
    assert [pair.stem for pair in list_pairs(tmp_path / "out", "train")] == ["000", "001"]


def test_a_dataset_folder_gets_the_predicted_masks(trained: Path, dataset: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"  # without masks, whose images have another format
    for path in sorted(dataset.glob("*/images/*.png")):
        target = (bare / path.relative_to(dataset)).with_suffix(".tif")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    names = [path.relative_to(bare).as_posix() for path in sorted(bare.glob("*/images/*"))]
    save_metadata(bare, [{"file_name": name, "parent": f"sheet{index}"} for index, name in enumerate(names)])
    (bare / "train" / "images" / "rejects.txt").write_text("000\n")
    names.remove("train/images/000.tif")
    labeler = load_labeler(trained)
    assert label_folder(labeler, bare, tmp_path / "out") == len(names)
    assert not check_dataset(tmp_path / "out").problems
    pairs = list_pairs(tmp_path / "out", "test")
    assert [pair.stem for pair in pairs] == ["000", "001"]
    image, mask = load_pair(pairs[0], load_dataset_info(tmp_path / "out"))
    assert np.array_equal(mask, label_micrograph(labeler, image)[0])
    rows = load_metadata(tmp_path / "out")
    assert list(rows) == [str(Path(name).with_suffix(".png")) for name in names]
    assert rows["test/images/001.png"]["parent"] == "sheet1"


def test_unlabeled_micrographs_join_the_dataset(dataset: Path, tmp_path: Path) -> None:
    """A folder with all micrographs: those of the dataset keep their masks, the others get predicted ones."""
    more = tmp_path / "more"
    more.mkdir()
    for path in sorted((dataset / "train" / "images").iterdir())[:2]:
        shutil.copy(path, more)
    new, mask = draw_micrograph(np.random.default_rng(9), 96)
    Image.fromarray(new).save(more / "new.tif")
    quick = {"architecture": "unet", "steps": 30, "batch_size": 8, "base_channels": 8, "num_levels": 2}
    values = {
        "dataset": str(dataset),
        "output_dir": str(tmp_path / "out"),
        "unlabeled": str(more),
        "test_split": None,
        "image_size": 32,
        "crop_size": 32,
        "segmenter": {**quick, "learning_rate": 1e-2},
    }
    scores = train_labeler(parse_config(values, SegmentConfig))
    assert scores["predicted"] == 1
    assert "mean_iou" not in scores
    completed = tmp_path / "out" / "dataset"
    assert not check_dataset(completed).problems
    assert load_metadata(completed)["train/images/new.png"]["labels"] == "predicted"
    info = load_dataset_info(completed)
    pairs = {pair.stem: pair for pair in list_pairs(completed, "train")}
    assert pairs.keys() == {"new", *(pair.stem for pair in list_pairs(dataset, "train"))}
    image, predicted = load_pair(pairs["new"], info)
    assert np.array_equal(image, new)
    assert np.array_equal(predicted, label_micrograph(load_labeler(tmp_path / "out"), new)[0])
    assert compute_scores(mask[None], predicted[None], 2).mean_iou > 0.75
    for split in ("train", "test"):
        for pair in list_pairs(dataset, split):
            kept = next(each for each in list_pairs(completed, split) if each.stem == pair.stem)
            assert all(map(np.array_equal, load_pair(pair, load_dataset_info(dataset)), load_pair(kept, info)))

    def stop(done: int, total: int) -> None:
        raise AssertionError("it trains before it has looked at all images")

    (more / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png: not a readable image"):
        train_labeler(parse_config({**values, "output_dir": str(tmp_path / "none")}, SegmentConfig), stop)
    for path in (more / "broken.png", more / "new.tif"):
        path.unlink()
    with pytest.raises(InputError, match=r"more: each image has the name of a micrograph of .* none to label"):
        train_labeler(parse_config({**values, "output_dir": str(tmp_path / "none")}, SegmentConfig))
    assert not (tmp_path / "none").exists()


def test_unusable_input_is_one_line(trained: Path, tmp_path: Path) -> None:
    labeler = load_labeler(trained)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        label_folder(labeler, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        label_folder(labeler, tmp_path / "broken", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no such file"):
        load_labeler(tmp_path / "empty")
    (tmp_path / "empty" / "segmenter.json").write_text((trained / "segmenter.json").read_text())
    (tmp_path / "empty" / "segmenter.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="does not fit segmenter"):
        load_labeler(tmp_path / "empty")


def test_weights_of_another_version_of_a_package_name_both(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    values = {"dataset": str(dataset), "output_dir": str(tmp_path / "out"), "image_size": 32, "crop_size": 32}
    quick = {"architecture": "segformer", "steps": 1, "batch_size": 2, "base_channels": 8}
    train_labeler(parse_config({**values, "segmenter": quick}, SegmentConfig))
    path, weights = tmp_path / "out" / "segmenter.json", tmp_path / "out" / "segmenter.safetensors"
    described = json.loads(path.read_text())
    packages = described["environment"]["packages"]
    assert packages["transformers"] == version("transformers")
    renamed = {name.replace("decode_head", "head"): tensor for name, tensor in load_file(weights).items()}
    save_tensors(weights, renamed)
    with pytest.raises(InputError, match=r"out/segmenter.safetensors: does not fit segmenter.json: "):
        load_labeler(tmp_path / "out")
    packages["transformers"] = "4.48.0"
    path.write_text(json.dumps(described))
    installed = f"does not fit transformers {version('transformers')}; saved with 4.48.0: "
    with pytest.raises(InputError, match=installed):
        load_labeler(tmp_path / "out")
    del described["environment"]  # as written by earlier versions
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="saved with an unknown version: "):
        load_labeler(tmp_path / "out")

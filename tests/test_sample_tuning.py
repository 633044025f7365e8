"""Choosing a sample config by validation mIoU: a made world with a known winner, resuming, splits, bad input."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import load_config, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.tune import TuneConfig
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.sample_tuning import tune_sample
from tests.conftest import write_tiny_dataset
from tests.evaluation.conftest import INFO, save_pairs


@pytest.fixture
def world(tmp_path):
    """Values of a config; the dataset has no test split, so that nothing can read it."""
    root = tmp_path / "discs"
    write_tiny_dataset(root, size=(48, 48), num_classes=2, splits=(("train", 2), ("val", 2)))
    for seed, split in enumerate(("train", "val")):
        shutil.rmtree(root / split)
        save_pairs(root / split / "images", root / split / "masks", 2, 64, seed)
    sample = {
        "generator": "bundled:uhcs",
        "output_dir": "runs/mine",
        "num_samples": 999,
        "mask_source": {"kind": "split", "dataset": str(root)},
    }
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    return {
        "sample": str(tmp_path / "sample.json"),
        "output_dir": str(tmp_path / "tune"),
        "dataset": str(root),
        "changes": {"wrong": {"solver.guidance_scale": 5}, "right": {"mask_source.augment": False}, "few": {}},
        "num_samples": 12,
        "code": "R000FALL",
        "architecture": "unet",
        "seeds": [0, 1],
        "training": {"steps": 16, "batch_size": 4, "base_channels": 8, "validate_every": 16, "learning_rate": 1e-2},
    }


def sample_world(choice, calls=None):
    """Stands in for sampling: pairs of the world, with swapped masks under strong guidance."""
    if calls is not None:
        calls.append(choice.output_dir.parent.name)
    if choice.output_dir.is_dir():
        return
    save_pairs(choice.output_dir / "samples", choice.output_dir / "labels", choice.num_samples, 32, 9)
    if choice.solver.guidance_scale == 5:
        from steelgen.data.folder import load_mask, save_mask

        for path in (choice.output_dir / "labels").iterdir():
            save_mask(path, 1 - load_mask(path, INFO), INFO.palette)
    described = {"image_size": 32, "crop_size": 32, "scale_range": [1, 1], "in_channels": 1}
    (choice.output_dir / "sampling.json").write_text(json.dumps(described))


def test_the_choice_with_right_masks_wins_and_is_written(world, tmp_path):
    config, lines, calls = parse_config(world, TuneConfig), [], []
    result = tune_sample(config, lambda choice: sample_world(choice, calls), lines.append)
    rows = {row["name"]: row for row in result["choices"]}
    assert rows["right"]["mean_iou"] > rows["wrong"]["mean_iou"] + 0.3
    assert rows["right"]["by_seed"] == rows["few"]["by_seed"]  # the same pairs, seeds and steps
    assert result["chosen"] == "right"  # of equal ones the first
    expected = np.subtract(rows["right"]["by_seed"], rows["wrong"]["by_seed"])
    assert rows["right"]["difference"] == pytest.approx(expected)
    chosen = load_config(tmp_path / "tune" / "sample.json", SampleConfig)
    original = load_config(tmp_path / "sample.json", SampleConfig)
    assert chosen == original.model_copy(
        update={"mask_source": original.mask_source.model_copy(update={"augment": False})}
    )
    assert calls == ["wrong", "right", "few"]
    # Finished segmenters are kept, and choices may be added.
    (tmp_path / "tune" / "few" / "seed1.json").write_text('{"mean_iou": 1.0, "best_step": 30}')
    again = tune_sample(config, sample_world, lines.append)
    assert again["choices"][:2] == result["choices"][:2]
    assert again["chosen"] == "few"
    more = config.model_copy(update={"changes": {**config.changes, "more": {"solver.num_inference_steps": 3}}})
    assert len(tune_sample(more, sample_world, lines.append)["choices"]) == 4
    with pytest.raises(InputError, match=r"another config \(architecture was"):
        tune_sample(config.model_copy(update={"architecture": "segformer"}), sample_world, lines.append)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"changes": {"a": {}}}, "changes: .*at least 2"),
        ({"code": "RALLF000"}, "code: 'RALLF000' has no generated pairs"),
        ({"val_split": "train"}, "val_split: 'train' is also the train_split"),
        ({"val_split": "test"}, "test_split: 'test' is also the train or val_split"),
        ({"changes": {"a": {}, "b": {"num_samples": 3}}}, r"changes\.b\.num_samples: is the same"),
        ({"changes": {"a": {}, "b": {"solver.guidanc": 3}}}, r"sample\.json with changes\.b: .*guidance"),
        ({"changes": {"a": {}, "b": {"mask_source.split": "val"}}}, r"changes\.b: mask_source\.split: 'val' is not"),
        ({"changes": {"a": {}, "b": {"start_images": {"split": "test"}}}}, r"start_images\.split: 'test' is not"),
        ({"sample": "missing.json"}, r"missing\.json"),
    ],
)
def test_bad_input_is_one_line(world, tmp_path, changes, message):
    def refuse(choice):
        raise AssertionError("nothing is sampled")

    with pytest.raises(InputError, match=message) as error:
        tune_sample(parse_config({**world, **changes}, TuneConfig), refuse, lambda line: None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tune").exists()


def test_the_command_prints_the_table(world, tmp_path, monkeypatch):
    monkeypatch.setattr("steelgen.cli.workflow.run_stage", sample_world)
    path = tmp_path / "tune.json"
    path.write_text(json.dumps(world))
    quick = ["--set", "seeds=[3]", "--set", "training.steps=2"]
    shown = CliRunner().invoke(app, ["sample", "--tune", str(path), *quick])
    assert shown.exit_code == 0, shown.output
    result = load_json(tmp_path / "tune" / "tune.json")
    assert f"{result['choices'][1]['mean_iou']:.3f}" in shown.output
    assert f"chosen: {result['chosen']}; config: " in shown.output
    told = CliRunner().invoke(app, ["sample", "--tune", str(path), *quick, "--json"])
    assert json.loads(told.stdout)["choices"] == result["choices"]
    refused = CliRunner().invoke(app, ["sample", "--tune", str(path), "--shard", "1/2"])
    assert refused.exit_code == 2
    assert "--tune: can only be combined" in refused.output

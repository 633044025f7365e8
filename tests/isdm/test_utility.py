"""The config of ISDM's segmentation_evaluation, read as a utility study."""

import json

import pytest
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.utility import UtilityConfig
from steelgen.errors import InputError
from steelgen.evaluation.utility.data import load_study
from steelgen.isdm.utility import convert_isdm_study, is_isdm_study
from tests.evaluation.conftest import save_pairs

# The keys of its segmentation_evaluation/config.json, all of them.
SHIPPED = {
    "train": "PATH_TO_YOUR_TRAIN_DATA",
    "test": "PATH_TO_YOUR_TEST_DATA",
    "log": "./logs",
    "image_size": 128,
    "generated_masks": "",
    "generated_images": "",
    "semantic_image_synthesis": False,
    "num_classes": 2,
    "test_codes": None,
    "models": None,
}


@pytest.fixture
def old(tmp_path):
    """A config for a dataset in ISDM's own layout, without dataset.json or val/."""
    for seed, (split, count) in enumerate({"train": 10, "test": 2}.items()):
        save_pairs(tmp_path / "lemons" / split / "images", tmp_path / "lemons" / split / "masks", count, 40, seed)
    save_pairs(tmp_path / "drawn" / "samples", tmp_path / "drawn" / "labels", 8, 32, 9)
    return {
        **SHIPPED,
        "train": str(tmp_path / "lemons" / "train"),
        "test": str(tmp_path / "lemons" / "test"),
        "log": str(tmp_path / "logs"),
        "image_size": 32,
        "generated_images": str(tmp_path / "drawn" / "samples"),
        "generated_masks": str(tmp_path / "drawn" / "labels"),
    }


def test_it_is_recognized_by_its_keys():
    assert is_isdm_study(SHIPPED)
    assert not is_isdm_study({"train": {}, "sample": {}})
    assert not is_isdm_study({"dataset": "d", "output_dir": "o"})
    assert not is_isdm_study([])


def test_defaults_are_its_own(old):
    converted, notes = convert_isdm_study(old, "config.json")
    config = parse_config(converted, UtilityConfig)
    # 2 of the 10 training images are held back; the last codes but one put the others' number in.
    assert config.codes == [
        "RALLF000",
        "RALLF100",
        "RALLF400",
        "RALLF700",
        "RALLFALL",
        "R000F8",
        "R8F8",
        "R000FALL",
    ]
    assert config.architectures == ["unetplusplus", "upernet", "deeplabv3plus"]
    assert (config.training.steps, config.training.batch_size) == (50 * 8 // 2, 2)
    assert config.training.learning_rate == 1e-4
    assert config.training.loss == "dice"
    assert config.val_split is None
    assert any(note.startswith("semantic_image_synthesis: ignored") for note in notes)


def test_what_it_names_is_taken_over(old):
    old |= {"test_codes": ["RALLF000", "R4FALL"], "models": ["FPN", "UnetPlusPlus", "MAnet"]}
    converted, _ = convert_isdm_study(old, "config.json")
    config = parse_config(converted, UtilityConfig)
    assert config.codes == ["RALLF000", "R4FALL"]
    assert config.architectures == ["upernet", "unetplusplus", "smp:MAnet:resnet34"]
    data = load_study(config)
    assert (len(data.train), len(data.val), len(data.test), data.num_generated) == (8, 2, 2, 8)
    assert data.geometry.in_channels == 3


def test_commands_take_it_as_it_is(old, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**old, "test_codes": ["RALLF000", "RALLFALL"]}))
    dry = CliRunner().invoke(app, ["utility", "-c", str(path), "--dry-run", "--set", "seeds=[4]"])
    assert dry.exit_code == 0, dry.output
    assert "segmentation_evaluation config, converted to a config of `steelgen utility`" in dry.output
    assert "6 cells, 0 done" in dry.output
    new = tmp_path / "new.json"
    converted = CliRunner().invoke(app, ["config", "convert", str(path), "--out", str(new)])
    assert converted.exit_code == 0, converted.output
    assert json.loads(new.read_text())["codes"] == ["RALLF000", "RALLFALL"]
    again = CliRunner().invoke(app, ["utility", "-c", str(new), "--dry-run"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "elsewhere/test"}, "must be in one folder"),
        ({"train": "lost/train", "test": "lost/test"}, "no such folder"),
        ({"modells": []}, "unknown key 'modells'; did you mean 'models'"),
        ({"num_classes": "two"}, "num_classes"),
    ],
)
def test_unusable_ones_are_one_line(old, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        convert_isdm_study({**old, **changes}, "config.json")
    assert "\n" not in str(caught.value)

"""Strict configs: unknown keys, overrides, schemas, the shipped files."""

import json
from pathlib import Path

import jsonschema
import pytest

from steelgen.config import isdm
from steelgen.config.actions import ACTIONS
from steelgen.config.base import Section, build_schema, config_to_json, load_config, parse_config
from steelgen.config.reference import build_reference
from steelgen.config.train import TrainConfig
from steelgen.data.folder import load_dataset_info
from steelgen.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = {"run_dir": "r", "data": {"dataset": "d"}, "train": {"max_steps": 1}}


def parse(values, *overrides):
    return parse_config(json.loads(json.dumps(values)), TrainConfig, overrides, origin="train.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**MINIMAL, "trian": {}}, r"train.json: unknown key 'trian'; did you mean 'train'\?"),
        (
            {**MINIMAL, "train": {"max_steps": 1, "learning_rat": 1}},
            r"unknown key 'train.learning_rat'; did you mean 'learning_rate'",
        ),
        (
            {**MINIMAL, "generator": {"unet": {"base_chanels": 8}}},
            r"'generator.unet.base_chanels'; did you mean 'base_channels'",
        ),
        ({"run_dir": "r", "train": {"max_steps": 1}}, r"data: is missing"),
        (
            {**MINIMAL, "train": {"max_steps": 1, "learning_rate": -1}},
            r"train.learning_rate: .*greater than 0 \(got -1\)",
        ),
        ({**MINIMAL, "train": {"max_steps": "many"}}, r"train.max_steps: .*got \"many\""),
        ({**MINIMAL, "train": {}}, "one of max_steps and max_epochs"),
        ({**MINIMAL, "data": {"dataset": "d", "image_size": 60}}, "image_size 60 is not a multiple of 8"),
        (
            {
                **MINIMAL,
                "data": {"dataset": "d", "image_size": 72},
                "generator": {"unet": {"patch_size": 2, "channel_mult": [1, 2, 3, 4]}},
            },
            "image_size 72 is not a multiple of 16, needed for 4 levels and unet.patch_size 2",
        ),
        (
            {**MINIMAL, "generator": {"unet": {"patch_size": 2}, "latent": "codec"}},
            "latent: not applicable to unet.patch_size 2",
        ),
        (
            {**MINIMAL, "generator": {"unet": {"base_channels": 48, "norm_groups": 32}}},
            "gives 48 channels, not a multiple of norm_groups",
        ),
        (
            {**MINIMAL, "generator": {"noise": {"prediction_type": "epsilon"}}},
            "zero_terminal_snr needs prediction_type",
        ),
        (
            {**MINIMAL, "data": {"dataset": "d", "scale_range": [0, 1]}},
            r"data.scale_range.0: Input should be greater than 0 \(got 0\)",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(InputError, match=message):
        parse(values)


@pytest.mark.parametrize(("action", "key"), [("segment", "scale_range"), ("evaluate", "geometry.scale_range")])
@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ("[0, 1]", ".0: Input should be greater than 0"),
        ("[1.25, 0.8]", r": the smaller factor must come first \(got \[1.25, 0.8\]"),
        ("[-1, 1]", ".0: Input should be greater than 0"),
    ],
)
def test_factors_are_positive_and_in_order(action, key, factors, message):
    values = {"dataset": "d", "output_dir": "o", **({"generated": "g"} if action == "evaluate" else {})}
    with pytest.raises(InputError, match=key + message):
        parse_config(values, ACTIONS[action], [f"{key}={factors}"])


def test_overrides_are_typed_and_nested():
    config = parse(
        MINIMAL,
        "train.learning_rate=1e-3",
        "data.augment=false",
        "run_dir=runs/7",
        "generator.unet.channel_mult=[1,2]",
    )
    assert config.train.learning_rate == 1e-3
    assert config.data.augment is False
    assert config.run_dir == Path("runs/7")
    assert config.generator.unet.channel_mult == [1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate", "dotted.key=value"),
        ("run_dir.x=1", "'run_dir' is a value"),
        ("train.lerning_rate=1", "did you mean 'learning_rate'"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(InputError, match=message):
        parse(MINIMAL, override)


def test_resolved_config_is_enough_to_run_again():
    config = parse(MINIMAL, "train.learning_rate=3e-4")
    assert parse(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"c.json:1:2: not valid JSON"),
        ("[]", "must contain a JSON object, not list"),
        ("\ufeff{}", "is missing"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_files(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "c.json", TrainConfig)


def test_reference_page_is_up_to_date():
    """docs/configs.md is written by `steelgen config reference --out docs/configs.md`."""
    page = (CONFIGS.parent / "docs" / "configs.md").read_text()
    assert page == build_reference()
    assert "| `learning_rate` | float, > 0, ≤ 10 | `0.0002` | AdamW's learning rate after warm-up. |" in page


@pytest.mark.parametrize("action", ACTIONS)
def test_schema_files_are_up_to_date(action):
    """configs/schema is written by `steelgen config schema --out configs/schema`."""
    assert json.loads((CONFIGS / "schema" / f"{action}.json").read_text()) == build_schema(ACTIONS[action])


SHIPPED = [*sorted(CONFIGS.glob("*.json")), *sorted(CONFIGS.glob("bundled/*.json"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    values = json.loads(path.read_text())
    action = Path(values["$schema"]).stem
    jsonschema.validate(values, build_schema(ACTIONS[action]))
    load_config(path, ACTIONS[action])


def test_phase_fractions_of_shipped_configs_are_of_classes_that_uhcs_has():
    classes = set(load_dataset_info(CONFIGS.parent / "data/uhcs").class_names)
    named = [
        json.loads(path.read_text())["mask_source"].get("phase_fraction", {}) for path in CONFIGS.glob("sample*.json")
    ]
    assert sum(map(len, named)) > 1
    assert set().union(*named) <= classes


@pytest.mark.parametrize("action", ACTIONS)
def test_every_field_is_described(action):
    """The docstring under a field is its help in editors and docs."""

    def check(name, schema):
        for field, content in schema.get("properties", {}).items():
            # A section whose field says the same as its class is described there alone.
            assert field == "$schema" or content.get("description") or "$ref" in content, f"{name}.{field}"

    schema = build_schema(ACTIONS[action])
    check(action, schema)
    for name, definition in schema.get("$defs", {}).items():
        check(name, definition)


def list_sections(kind=Section):
    return [section for child in kind.__subclasses__() for section in (child, *list_sections(child))]


def find_numbers(schema, path=""):
    """The paths and schemas of all numbers in a JSON Schema, those of lists and unions among them."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from find_numbers(inner, f"{path}[{index}]")
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"enum", "const"} & schema.keys():
            yield path, schema
        for key, inner in schema.items():
            if key not in ("default", "examples"):
                yield from find_numbers(inner, f"{path}.{key}")


@pytest.mark.parametrize("section", list_sections(), ids=lambda section: section.__name__)
def test_every_number_has_both_bounds(section):
    for path, schema in find_numbers(section.model_json_schema()):
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), path
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), path


def test_all_configs_are_walked():
    """A section whose module no other test imports would be missed; and a walk that finds nothing tests nothing."""
    assert {*ACTIONS.values(), isdm.IsdmConfig, isdm.IsdmStudyConfig} <= set(list_sections())
    assert sum(1 for _ in find_numbers(TrainConfig.model_json_schema())) > 40


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=1e308",
        "train.max_steps=2147483648",
        "seed=100000000000000000000",
        "data.image_size=2147483648",
        "generator.noise.num_train_timesteps=100000000000",
        "generator.unet.base_channels=" + "9" * 4000,
        "generator.unet.base_channels=" + "9" * 5000,
        "train.learning_rate=NaN",
        "train.learning_rate=" + "[" * 100_000,
        "run_dir=a\udc80",
        "run_dir=a\0",
    ],
    ids=lambda override: override[:40].encode("ascii", "backslashreplace").decode(),
)
def test_values_that_no_machine_can_take_are_one_short_line(override):
    with pytest.raises(InputError) as error:
        parse(MINIMAL, override)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250

"""Models that come with the package, and drawing with them without a config."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import steelgen
from steelgen.bundled import find_refining, list_bundled, resolve_bundled
from steelgen.cli.app import app
from steelgen.config.base import load_config, parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.cascade import build_cascade
from steelgen.generators.families import load_generator

ASSETS = Path(steelgen.__file__).parent / "assets"
CONFIGS = Path(__file__).parents[1] / "configs" / "bundled"
MODELS = [*list_bundled(), *(f"{name}/refine" for name in list_bundled())]
_QUICK = {"num_inference_steps": 1, "guidance_scale": 1, "window_overlap": 0.1}
_STAGES = [{"generator": "bundled:uhcs", "solver": _QUICK}, {"generator": "bundled:uhcs/refine", "solver": _QUICK}]
FAST = ["num_samples=1", f"stages={json.dumps(_STAGES)}"]


def invoke(*overrides):
    arguments = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["sample", *arguments])


def test_models_are_small_and_safe():
    assert list_bundled() == ["base", "uhcs"]
    for name in list_bundled():
        files = [path for path in (ASSETS / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 16 * 2**20
        assert {path.suffix for path in files} <= {".safetensors", ".json", ".png", ".md", ".txt"}
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 24 * 2**20


@pytest.mark.parametrize("name", MODELS)
def test_each_is_what_its_committed_config_trains(name):
    generator = load_generator(Path(f"bundled:{name}"))
    config = load_config(CONFIGS / f"{name.replace('/', '-')}.json", TrainConfig)
    assert {parameter.dtype for parameter in generator.network.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in generator.network.parameters())
    for field in ("base_channels", "channel_mult", "num_res_blocks", "spade_channels"):
        assert generator.network.config[field] == getattr(config.generator.unet, field)
    assert generator.geometry.image_size == config.data.image_size
    assert generator.geometry.crop_size == config.data.crop_size
    recipe = json.loads((ASSETS / name / "bundled.json").read_text())["config"]
    trained = parse_config(recipe, TrainConfig)  # with the defaults of fields that are younger
    ends = {"max_steps": 0, "max_minutes": None}  # bundled.json has the step
    assert trained.train.model_copy(update=ends) == config.train.model_copy(update=ends)


@pytest.mark.parametrize("name", list_bundled())
def test_model_card_tells_data_licence_recipe_and_figures(name):
    card = (ASSETS / name / "README.md").read_text(encoding="utf-8")
    for part in ("license:", "## Data", "## Recipe", "## Figures", "## Limits", f"configs/bundled/{name}.json", "KID"):
        assert part in card


@pytest.mark.parametrize("name", list_bundled())
def test_each_has_a_stage_that_refines_its_images(name):
    stages = [Path(f"bundled:{name}"), Path(find_refining(f"bundled:{name}"))]
    cascade = build_cascade([load_generator(path) for path in stages], [SolverSection(), SolverSection()], stages)
    assert cascade.factors == (2, 1)
    assert find_refining("bundled:nothing") is None


def test_sample_without_a_config_draws_labeled_steel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*FAST)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "steelgen-samples"
    image = np.asarray(Image.open(folder / "samples" / "000000.png"))
    mask = np.asarray(Image.open(folder / "labels" / "000000.png"))
    assert image.shape == mask.shape == (484, 645)
    real = np.asarray(Image.open(ASSETS / "uhcs" / "masks" / json.loads(_first_line(folder))["source_mask"]))
    assert set(np.unique(mask)) <= set(np.unique(real))
    assert image.std() > 10


def _first_line(folder):
    return (folder / "metadata.jsonl").read_text().splitlines()[0]


def test_overrides_apply_without_a_config(tmp_path):
    result = invoke(*FAST, f"output_dir={tmp_path / 'out'}", "mask_source.whole=false", "num_samples=2")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out" / "samples" / "000001.png").size == (128, 128)


def test_other_paths_are_left_alone():
    assert resolve_bundled(Path("runs/uhcs")) == Path("runs/uhcs")


@pytest.mark.parametrize("path", ["bundled:nothing", "bundled:", "bundled:uhcs/nothing", "bundled:uhcs/../uhcs"])
def test_what_is_not_bundled_is_named(path):
    with pytest.raises(InputError, match=path):
        resolve_bundled(Path(path))


@pytest.mark.parametrize("override", ["stages=bundled:nothing", 'stages=["bundled:nothing", "bundled:uhcs/refine"]'])
def test_an_unknown_model_is_one_line(override):
    result = invoke(override)
    assert result.exit_code == 2
    assert f"available: {', '.join(list_bundled())}" in result.output

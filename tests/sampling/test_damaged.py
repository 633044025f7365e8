"""Generators that cannot draw anything meaningful are refused by name, and an image of nothing is never written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.solver import SolverSection
from steelgen.errors import InputError
from steelgen.generators.families import load_generator
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator
from tests.sampling.test_crashes import MASKS, build_values

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def export(trained, tmp_path):
    """A copy of a generator folder, to be damaged."""
    return shutil.copytree(trained[1] / "export", tmp_path / "export")


def run_sample(trained, tmp_path, generator):
    values = build_values(trained, tmp_path / "out", generator=str(generator))
    (tmp_path / "sample.json").write_text(json.dumps(values))
    return CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")])


@pytest.mark.parametrize("tensor", ["conv_in.weight", "conv_out.bias", "time_mlp.2.bias"])
@pytest.mark.parametrize(("value", "said"), [("nan", "NaN"), ("inf", "a value of inf"), ("-1e38", "a value of 1e+38")])
def test_weights_that_draw_nothing_are_refused(trained, tmp_path, export, tensor, value, said):
    weights = load_file(export / WEIGHTS)
    weights[tensor].view(-1)[-1] = float(value)
    save_file(weights, export / WEIGHTS)
    result = run_sample(trained, tmp_path, export)
    assert result.exit_code == 2, result.output
    assert f"{export / 'unet'}: '{tensor}' contains {said}" in result.stderr
    assert result.stderr.count("steelgen: ") == 1
    assert not (tmp_path / "out").exists()


def change_index(export, **changes):
    path = export / "model_index.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, 'scheduler is ["diffusers", "DDIMScheduler"], must be'),
        ({"scheduler": ["subprocess", "Popen"]}, 'scheduler is ["subprocess", "Popen"]'),
        ({"scheduler": None}, "scheduler is null"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, 'vae is ["diffusers", "AutoencoderKL"], must be null'),
        ({"unet": ["diffusers", "UNet2DModel"]}, 'unet is ["diffusers", "UNet2DModel"]'),
    ],
)
def test_other_components_are_refused_unread(trained, tmp_path, export, changes, said):
    path = change_index(export, **changes)
    result = run_sample(trained, tmp_path, export)
    assert result.exit_code == 2, result.output
    assert f"{path}: {said}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_diffusers_adds_to_the_index_is_no_component(export):
    change_index(export, _name_or_path="elsewhere")
    assert load_generator(export).geometry.image_size == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_not_finite_is_named_by_its_seed(trained, monkeypatch, value):
    """As the network gives it, in the second of three images; one infinite pixel is not clamped to white."""
    generator = prepare_generator(trained[1])
    draw = SemanticSampler.__call__

    def spoil(*arguments, **options):
        images = draw(*arguments, **options)
        images[1, 0, 5, 7] = value
        return images

    monkeypatch.setattr(SemanticSampler, "__call__", spoil)
    with pytest.raises(InputError, match="the image of seed 8 has non-finite pixels"):
        generate_images(generator, SamplingBatch(MASKS, [7, 8, 9], SolverSection(num_inference_steps=1)))
    with pytest.raises(InputError, match="fp16 overflows above 65504"):
        generate_images(generator, SamplingBatch(MASKS, [7, 8, 9], SolverSection(num_inference_steps=1)), "fp16")


def test_activations_that_overflow_write_no_image(trained, tmp_path, export):
    """Weights of which each alone is possible, and whose products are not."""
    weights = load_file(export / WEIGHTS)
    save_file({name: torch.full_like(value, 9e5) for name, value in weights.items()}, export / WEIGHTS)
    result = run_sample(trained, tmp_path, export)
    assert result.exit_code == 2, result.output
    assert "the image of seed 0 has non-finite pixels" in result.stderr
    assert not list((tmp_path / "out").rglob("*.png"))

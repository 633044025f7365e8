"""The commands of docs/adapters.md in their order, with a tiny base where the downloaded one would be."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.solver import SolverSection
from steelgen.data.folder import load_dataset_info
from steelgen.generators.latent_adapter import class_images
from steelgen.generators.latent_adapter.reconstruction import measure_contrasts
from tests.generators.tiny_base import save_tiny_base
from tests.test_documentation import COMMANDS, REPOSITORY

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SMALL = {
    "train": (
        *("data.image_size=16", "generator.num_class_images=1", "train.max_steps=1"),
        *("train.gradient_accumulation_steps=1", "preview.num_images=0", "validation.crops=8"),
    ),
    "sample": ("num_samples=1", "solver.num_inference_steps=2"),
}
SMALL_OPTIONS = {"reconstruct": ("--image-size", "32", "--count", "2")}


@pytest.mark.filterwarnings("ignore:the base's images have a tint")
def test_the_page_runs_from_the_base_to_labeled_micrographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(class_images, "_SOLVER", SolverSection(num_inference_steps=1))
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    save_tiny_base(tmp_path / BASE)
    commands = [command.split()[1:] for page, command in COMMANDS if page == "adapters.md"]
    assert [command[:2] for command in commands[:1]] == [["data", "fetch"]]
    for command in commands[1:]:
        settings = [part for value in SMALL.get(command[0], ()) for part in ("--set", value)]
        result = CliRunner().invoke(app, [*command, *settings, *SMALL_OPTIONS.get(command[1], ())])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    found = json.loads((tmp_path / "runs/adapter/reconstruction/reconstruction.json").read_text())
    assert list(found) == load_dataset_info(REPOSITORY / "data/uhcs").class_names[1:]
    assert any(each["pixels"] and each["kept"] is not None for each in found.values())
    for folder in ("samples", "variants"):
        [image] = (tmp_path / "runs/adapter" / folder / "samples").glob("*.png")
        label = Image.open(tmp_path / "runs/adapter" / folder / "labels" / image.name)
        assert Image.open(image).size == label.size == (16, 16)
        assert Image.open(image).mode == "L"
    # A generator that does not follow masks makes no pairs of them.
    concept = next(command for command in commands if "start_images.strength=0.3" in command)
    without = ["--set", "start_images=null", "--set", "output_dir=runs/adapter/none"]
    result = CliRunner().invoke(app, [*concept, *without])
    assert result.exit_code == 2
    assert "this generator of kind latent_adapter does not follow masks" in result.output
    assert not (tmp_path / "runs/adapter/none").exists()


def test_contrast_of_films_is_lost_first():
    masks = np.zeros((1, 64, 64), np.uint8)
    masks[0, 10:11] = 1  # a film of 1 px
    masks[0, 30:50] = 2  # a band of 20 px
    images = np.array([100, 160, 160], np.uint8)[masks]
    same, halved = (measure_contrasts(images, each, masks, list("abcd")) for each in (images, images // 2))
    assert [each[:3] for each in same[:2]] == [("b", 64, 60), ("c", 20 * 64, 60)]
    assert [each.kept for each in same[:2]] == [1, 1]
    assert [each.kept for each in halved[:2]] == [0.5, 0.5]
    assert np.isnan(same[2].kept)  # absent
    blurred = gaussian_filter(images[0].astype(float), 2).round().astype(np.uint8)[None]
    film, band, _ = measure_contrasts(images, blurred, masks, list("abcd"))
    assert film.kept < 0.25
    assert band.kept > 0.6

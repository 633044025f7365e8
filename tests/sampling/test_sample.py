"""Sampling into a folder: seeds, batches, stopping and going on, mask sources, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import load_dataset_info, load_mask, save_dataset_info
from steelgen.data.palette import color_mask
from steelgen.errors import InputError
from steelgen.sampling.sample import sample
from tests.conftest import write_tiny_dataset

FOLDERS = ("samples", "images", "labels", "colored_labels")


def build_values(trained, out, **options):
    dataset, run = trained
    return {
        "generator": str(run),
        "output_dir": str(out),
        "mask_source": {"kind": "split", "dataset": str(dataset), "split": "test"},
        "num_samples": 5,
        "solver": {"num_inference_steps": 3},
        **options,
    }


def draw(trained, out, **options):
    return sample(parse_config(build_values(trained, out, **options), SampleConfig))


def read_all(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for folder in FOLDERS for path in sorted((out / folder).iterdir())
    }


def test_four_folders_match_and_say_where_they_come_from(trained, tmp_path):
    out = draw(trained, tmp_path / "out")
    names = [{path.name for path in (out / folder).iterdir()} for folder in FOLDERS]
    assert names[0] == {f"{index:06d}.png" for index in range(5)}
    assert all(each == names[0] for each in names)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["source_mask"].startswith("test/masks/test") and row["synthetic"] for row in rows)
    info = load_dataset_info(out)
    for row in rows:
        mask = load_mask(out / row["mask"], info)
        name = Path(row["mask"]).name
        assert np.array_equal(np.asarray(Image.open(out / "colored_labels" / name)), color_mask(mask, info.palette))
        assert np.asarray(Image.open(out / row["file_name"])).shape == mask.shape == (16, 16)
    assert (out / "contact_sheet.png").is_file()


def test_pixel_size_is_that_of_the_drawn_images(trained, tmp_path):
    run = tmp_path / "sized"
    shutil.copytree(trained[1] / "export", run)
    description = json.loads((run / "generator.json").read_text())
    description["dataset"]["pixel_size_um"] = 0.2
    (run / "generator.json").write_text(json.dumps(description))
    out = draw(trained, tmp_path / "out", generator=str(run), num_samples=1)
    assert load_dataset_info(out).pixel_size_um == pytest.approx(0.2 * 24 / 16)


def test_labels_are_exact_crops_of_the_masks_named(trained, tmp_path):
    """Every label must occur, up to the symmetry it was drawn with, in the mask it is said to come from."""
    dataset, _ = trained
    out = draw(trained, tmp_path / "out")
    info = load_dataset_info(dataset)
    for row in (json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()):
        source = load_mask(dataset / f"{row['source_mask']}.png", info)
        label = load_mask(out / row["mask"], info)
        assert set(np.unique(label)) <= set(np.unique(source))
        real = np.asarray(Image.open(out / "images" / Path(row["mask"]).name)).astype(float)
        for index in np.unique(label):  # gray levels of the tiny set are 60 + 60·class
            inside = real[label == index]
            assert np.median(inside) == pytest.approx(60 + 60 * index, abs=35)


@pytest.mark.parametrize("solver", ["dpmsolver++", "sde-dpmsolver++", "ddpm"])
def test_batch_size_changes_nothing(trained, tmp_path, solver):
    options = {"solver": {"name": solver, "num_inference_steps": 3}}
    one = draw(trained, tmp_path / "one", batch_size=1, **options)
    four = draw(trained, tmp_path / "four", batch_size=4, **options)
    assert read_all(one) == read_all(four)


def test_other_seed_other_images(trained, tmp_path):
    first, second = draw(trained, tmp_path / "a"), draw(trained, tmp_path / "b", seed=100)
    assert (first / "samples/000000.png").read_bytes() != (second / "samples/000000.png").read_bytes()


def test_an_unfinished_folder_is_completed_and_left_alone(trained, tmp_path):
    whole = draw(trained, tmp_path / "whole")
    part = draw(trained, tmp_path / "part", num_samples=2)
    before = (part / "samples/000000.png").stat().st_mtime_ns
    (part / "samples/000001.png").unlink()
    draw(trained, tmp_path / "part")
    assert read_all(part) == read_all(whole)
    assert (part / "samples/000000.png").stat().st_mtime_ns == before


def test_used_folders_are_refused(trained, tmp_path):
    out = draw(trained, tmp_path / "out", num_samples=1)
    with pytest.raises(
        InputError, match=r"out: seed was 0, is now 7: resuming would mix results of both; .*--allow-changed seed"
    ):
        draw(trained, out, num_samples=1, seed=7)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="already in use"):
        draw(trained, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_masks_from_a_folder(trained, tmp_path):
    dataset, _ = trained
    folder = tmp_path / "masks"
    folder.mkdir()
    finished = np.zeros((16, 16), np.uint8)
    finished[4:9, 5:12] = 2
    Image.fromarray(finished).save(folder / "a.png")
    shutil.copy(dataset / "test/masks/test0.png", folder / "b.png")
    out = draw(trained, tmp_path / "out", mask_source={"kind": "folder", "folder": str(folder)})
    info = load_dataset_info(out)
    assert np.array_equal(load_mask(out / "labels/000000.png", info), finished)
    assert np.array_equal(load_mask(out / "labels/000002.png", info), finished)
    assert not (out / "images").exists()
    sources = [json.loads(line)["source_mask"] for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert sources == ["a.png", "b.png", "a.png", "b.png", "a.png"]


def test_bad_masks_and_generators_are_named(trained, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    with pytest.raises(InputError, match="contains no mask images"):
        draw(trained, tmp_path / "out", mask_source={"kind": "folder", "folder": str(folder)})
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(folder / "a.png")
    with pytest.raises(InputError, match=r"a\.png: mask index 9 is not below num_classes 3"):
        draw(trained, tmp_path / "out", mask_source={"kind": "folder", "folder": str(folder)})
    two = write_tiny_dataset(tmp_path / "two", num_classes=2)
    save_dataset_info(two, load_dataset_info(two).model_copy(update={"class_names": ["matrix", "pore"]}))
    with pytest.raises(InputError, match="has 2 classes, the generator was trained with 3"):
        draw(trained, tmp_path / "out", mask_source={"kind": "split", "dataset": str(two), "split": "test"})
    with pytest.raises(InputError, match="no such run"):
        draw(trained, tmp_path / "out", generator=str(tmp_path / "nowhere"))
    damaged = tmp_path / "damaged"
    shutil.copytree(trained[1] / "export", damaged)
    weights = damaged / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a complete semantic diffusion model"):
        draw(trained, tmp_path / "out", generator=str(damaged))
    assert not (tmp_path / "out").exists()


def test_whole_micrographs_are_drawn_from_windows(trained, tmp_path):
    dataset, _ = trained
    source = {"kind": "split", "dataset": str(dataset), "split": "test", "whole": True}
    out = draw(trained, tmp_path / "out", num_samples=4, mask_source=source)
    shapes = {np.asarray(Image.open(path)).shape for path in (out / "samples").iterdir()}
    # 40x48 at 16/24 of its size, upright or on its side
    assert shapes <= {(27, 32), (32, 27)}
    for path in (out / "labels").iterdir():
        assert np.asarray(Image.open(path)).shape == np.asarray(Image.open(out / "samples" / path.name)).shape


def test_out_of_memory_says_what_to_change_and_keeps_what_is_drawn(trained, tmp_path, monkeypatch):
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion

    drawn = SemanticDiffusion.draw

    def run_out(self, request):
        if request.seeds[0] >= 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return drawn(self, request)

    monkeypatch.setattr(SemanticDiffusion, "draw", run_out)
    with pytest.raises(InputError, match=r"^out of memory: a batch of 4 images of 16x16 px needs more than") as caught:
        draw(trained, tmp_path / "out", num_samples=8, batch_size=4)
    assert "try batch_size=2, solver.mask_cache_gib=0, mixed_precision=bf16" in str(caught.value)
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 4
    monkeypatch.undo()
    assert draw(trained, tmp_path / "out", num_samples=8, batch_size=2).is_dir()


def test_a_folder_goes_on_with_the_generator_it_was_begun_with(trained, tmp_path):
    """Other weights or settings under the same path are refused, or allowed and noted; a copy is the same."""
    export = shutil.copytree(trained[1] / "export", tmp_path / "export")
    other = tmp_path / "export/unet/diffusion_pytorch_model.safetensors"
    options = {"generator": str(export), "num_samples": 2}
    out = draw(trained, tmp_path / "out", **options)
    begun = json.loads((out / "sampling.json").read_text())
    description = json.loads((export / "generator.json").read_text())
    (export / "generator.json").write_text(json.dumps({**description, "steelgen_version": "later"}))
    draw(trained, out, **options)
    (export / "generator.json").write_text(json.dumps({**description, "intensity": [0.1, 1.0]}))
    with pytest.raises(InputError, match=r"out: generator was \"[0-9a-f]{64}\", is now .*--allow-changed generator"):
        draw(trained, out, **options)
    (export / "generator.json").write_text(json.dumps(description))
    weights = load_file(other)
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] + 1}, other)
    first = (out / "samples/000000.png").read_bytes()
    (out / "samples/000001.png").unlink()
    (tmp_path / "sample.json").write_text(json.dumps(build_values(trained, out, **options)))
    command = ["sample", "-c", str(tmp_path / "sample.json")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "generator was" in refused.stderr
    assert not (out / "samples/000001.png").exists()
    allowed = CliRunner().invoke(app, [*command, "--allow-changed", "generator"])
    assert allowed.exit_code == 0, allowed.output
    assert (out / "samples/000000.png").read_bytes() == first
    (noted,) = [json.loads(line) for line in (out / "changes.jsonl").read_text().splitlines()]
    now = json.loads((out / "sampling.json").read_text())["drawn_by"]
    assert (noted["field"], noted["before"], noted["now"]) == (
        "generator",
        begun["drawn_by"]["generator"],
        now["generator"],
    )
    draw(trained, out, **options)  # as it now is

    del begun["drawn_by"]  # of an older version
    (out / "sampling.json").write_text(json.dumps(begun))
    draw(trained, out, **options)
    assert json.loads((out / "sampling.json").read_text())["drawn_by"] == now

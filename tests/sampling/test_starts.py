"""What drawing starts from: real micrographs (image to image) through runs and replay."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.sample import SampleConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.generators.families import build_generator
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.shards import Shard
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.sampling.test_sample import draw, read_all

GEOMETRY = CropGeometry(16, 24)


def pixels(path):
    return np.asarray(Image.open(path)).astype(float)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """(dataset folder, run folder) of an untrained generator whose linear schedule leaves signal at t=T."""
    root = tmp_path_factory.mktemp("linear")
    dataset = write_tiny_dataset(root / "tiny")
    section = tiny_train_config(dataset, root / "run")["generator"]
    noise = {"beta_schedule": "linear", "prediction_type": "epsilon", "zero_terminal_snr": False}
    section["noise"] = {**section["noise"], **noise}
    torch.manual_seed(0)
    micrographs = load_micrographs(dataset, "train")
    build_generator(parse_config(section, SemanticDiffusionSection), micrographs, GEOMETRY).save(root / "run/export")
    return dataset, root / "run"


def own_split(trained, **options):
    return {"kind": "split", "dataset": str(trained[0]), "split": "test", **options}


SOURCES = [
    {},
    {"mask_source": {"whole": True}},
    {"mask_source": {"kind": "balanced", "use_mask_augmentation": True}},
    {"start_images": {"split": "val", "augment": True}},
    {"mask_source": {"kind": "procedural"}, "start_images": {"split": "val"}},
    {"mask_source": {"whole": True}, "start_images": {"split": "test", "augment": False}},
    {"output_format": "dataset"},
]


@pytest.mark.parametrize("options", SOURCES)
def test_a_run_from_real_images_is_replayed_bit_by_bit(trained, tmp_path, options):
    source = own_split(
        trained, **{"augment": False} if "start_images" in options else {}, **options.get("mask_source", {})
    )
    if source["kind"] != "split":
        source.pop("augment", None)
    start = {"strength": 0.5, **options.get("start_images", {})}
    if "start_images" in options:
        start["dataset"] = str(trained[0])
    rest = {key: value for key, value in options.items() if key not in ("mask_source", "start_images")}
    out = draw(trained, tmp_path / "out", num_samples=3, mask_source=source, start_images=start, **rest)
    for line in (1, 2, 3):
        assert replay(out / "metadata.jsonl", line)[1] is True
    row = json.loads((out / "metadata.jsonl").read_text().splitlines()[0])
    assert row["draw"]["strength"] == 0.5
    if "images" in {path.name for path in out.iterdir()}:
        shown, described = np.asarray(Image.open(out / "images/000000.png")), row["start_image"]
        micrograph = np.asarray(Image.open(trained[0] / described["split"] / "images" / f"{described['stem']}.png"))
        top, left, height, width = described["window"]
        window = Image.fromarray(micrograph[top : top + height, left : left + width])
        rows, columns = described["size"]
        resized = np.asarray(window.resize((columns, rows), Image.Resampling.BOX))
        turned = np.rot90(resized, described["symmetry"] % 4)
        assert np.array_equal(shown, turned[:, ::-1] if described["symmetry"] >= 4 else turned)


def test_little_strength_keeps_the_image_and_all_of_it_nothing(trained, tmp_path):
    solver = {"num_inference_steps": 100}
    weak = draw(trained, tmp_path / "weak", num_samples=2, start_images={"strength": 0.01}, solver=solver)
    full = draw(trained, tmp_path / "full", num_samples=2, start_images={"strength": 1.0})
    plain = draw(trained, tmp_path / "plain", num_samples=2)
    for index in range(2):
        name = f"{index:06d}.png"
        # One step from σ = 0.06 of the images' standard deviation of 40 gray levels.
        assert np.abs(pixels(weak / "samples" / name) - pixels(weak / "images" / name)).mean() < 5
        assert np.array_equal(pixels(full / "samples" / name), pixels(plain / "samples" / name))


def test_shards_and_a_second_call_complete_a_run_from_images(trained, tmp_path):
    options = dict(start_images={"strength": 0.4, "dataset": str(trained[0]), "split": "val"}, num_samples=5)
    whole = draw(trained, tmp_path / "whole", **options)
    values = load_json(whole / "sampling.json")["config"] | {"output_dir": str(tmp_path / "parts"), "batch_size": 2}
    config = parse_config(values, SampleConfig)
    for number in (2, 1):
        sample(config, shard=Shard(number, 2))
    (tmp_path / "parts/samples/000003.png").unlink()
    assert read_all(sample(config)) == read_all(whole)


def test_images_of_another_split_are_not_those_of_the_masks(trained, tmp_path):
    start = {"strength": 0.5, "dataset": str(trained[0]), "split": "test"}
    out = draw(
        trained, tmp_path / "out", start_images=start, num_samples=4, mask_source=own_split(trained, augment=False)
    )
    own = draw(trained, tmp_path / "own", num_samples=4, mask_source=own_split(trained, augment=False))
    names = [f"{index:06d}.png" for index in range(4)]
    assert any(not np.array_equal(pixels(out / "images" / name), pixels(own / "images" / name)) for name in names)
    assert all(np.array_equal(pixels(out / "labels" / name), pixels(own / "labels" / name)) for name in names)


def test_a_generator_without_classes_keeps_the_labels_of_its_start_images(linear, tmp_path):
    dataset, _ = linear
    plain = tmp_path / "plain"
    shutil.copytree(dataset / "train/images", plain)
    section = tiny_train_config(dataset, tmp_path / "run")["generator"]
    torch.manual_seed(0)
    micrographs = load_micrographs(plain, "train")
    assert not micrographs.info.num_classes
    build_generator(parse_config(section, SemanticDiffusionSection), micrographs, GEOMETRY).save(
        tmp_path / "run/export"
    )
    trained = (dataset, tmp_path / "run")
    source, start = own_split(trained, augment=False), {"strength": 0.3}
    out = draw(trained, tmp_path / "out", num_samples=3, mask_source=source, start_images=start, coco=True)
    labeled = draw(linear, tmp_path / "labeled", num_samples=3, mask_source=source, coco=True)
    for index in range(3):
        name = f"labels/{index:06d}.png"
        assert np.array_equal(pixels(out / name), pixels(labeled / name))
    names = [category["name"] for category in load_json(out / "coco.json")["categories"]]
    assert names == [category["name"] for category in load_json(labeled / "coco.json")["categories"]]
    assert replay(out / "metadata.jsonl", 2)[1]
    for other in ({"mask_source": source}, {"mask_source": source, "start_images": {**start, "dataset": str(dataset)}}):
        with pytest.raises(InputError, match="the generator was trained without masks; use kind 'none'"):
            draw(trained, tmp_path / "other", **other)


def test_start_images_that_cannot_be_are_named(trained, tmp_path):
    dataset = str(trained[0])
    procedural = {"kind": "procedural", "dataset": dataset}
    for start, source, message in [
        ({}, procedural, "start_images.dataset: is missing"),
        ({"strength": 0}, own_split(trained), "strength: Input should be greater than 0"),
        ({"dataset": str(tmp_path / "none")}, procedural, "none"),
    ]:
        with pytest.raises(InputError, match=message):
            draw(trained, tmp_path / "out", start_images=start, mask_source=source)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="noise_prior was removed"):
        draw(trained, tmp_path / "out", noise_prior={"dataset": dataset})
    draw(trained, tmp_path / "out", noise_prior=None, num_samples=1)


def test_a_changed_or_missing_micrograph_is_named_in_replay(trained, tmp_path):
    dataset = tmp_path / "copy"
    shutil.copytree(trained[0], dataset)
    source = {"kind": "split", "dataset": str(dataset), "split": "test"}
    out = draw(trained, tmp_path / "out", num_samples=1, mask_source=source, start_images={"strength": 0.5})
    stem = json.loads((out / "metadata.jsonl").read_text())["start_image"]["stem"]
    path = dataset / f"test/images/{stem}.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match=rf"the pixels of the micrograph .*{stem} have changed since sampling"):
        replay(out / "metadata.jsonl", 1)
    path.unlink()
    (dataset / f"test/masks/{stem}.png").unlink()
    with pytest.raises(InputError, match=rf"the micrograph .*{stem} does not exist"):
        replay(out / "metadata.jsonl", 1)
    row = json.loads((out / "metadata.jsonl").read_text())
    (out / "metadata.jsonl").write_text(json.dumps({**row, "start_image": {"sha256": "x"}}))
    with pytest.raises(InputError, match=r"start_image\.dataset: is missing"):
        replay(out / "metadata.jsonl", 1)


@pytest.mark.parametrize("whole", [False, True])
def test_a_region_of_a_real_micrograph_is_generated_for_its_mask(trained, tmp_path, whole):
    source = own_split(trained, whole=whole)
    out = draw(trained, tmp_path / "out", mask_source=source, inpaint={"size": [10, 8]}, num_samples=3)
    for line in (out / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = row["mask"].rpartition("/")[2]
        top, left, height, width = row["inpaint"]["box"]
        real, image = pixels(out / "images" / name), pixels(out / row["file_name"])
        inside = np.zeros(real.shape, bool)
        inside[top : top + height, left : left + width] = True
        assert np.array_equal(image[~inside], real[~inside])
        assert (image[inside] != real[inside]).mean() > 0.5
    assert replay(out / "metadata.jsonl", 2)[1]
    with pytest.raises(InputError, match=r"inpaint\.phase_fraction: not applicable to this generator of kind semantic"):
        draw(trained, tmp_path / "no", mask_source=source, inpaint={"size": [4, 4], "phase_fraction": {"class_1": 0.4}})

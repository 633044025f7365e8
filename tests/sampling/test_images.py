"""Generators that turn images into others: a plain folder of images through runs, shards and replay."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import load_dataset_info, load_mask, save_mask
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.generators import Drawn
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.shards import Shard
from tests.sampling.test_sample import draw


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def inverting(trained, monkeypatch):
    """The trained generator, but one that turns black into white."""
    monkeypatch.setattr(SemanticDiffusion, "needs", frozenset({"masks", "images"}))
    monkeypatch.setattr(SemanticDiffusion, "takes", frozenset())
    monkeypatch.setattr(SemanticDiffusion, "draw", lambda self, request: Drawn(-request.images))
    return trained


@pytest.fixture
def folder(trained, tmp_path):
    """images/ and masks/: one of the generator's image_size 16, and one of 24x30 that is resized by 16/24."""
    info, rng = load_dataset_info(trained[0]), np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, size in (("a", (16, 16)), ("b", (24, 30))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f"images/{name}.png")
        mask = np.zeros(size, np.uint8)
        mask[: size[0] // 2] = 1
        save_mask(tmp_path / f"masks/{name}.png", mask, info.palette)
    return tmp_path


def source(root, **options):
    return {"kind": "images", "folder": str(root / "images"), "masks": str(root / "masks"), **options}


def run(inverting, folder, name="out", **options):
    return draw(inverting, folder / name, **{"num_samples": 3, "mask_source": source(folder), "solver": {}, **options})


def test_each_image_is_turned_and_keeps_its_mask(inverting, folder):
    out = run(inverting, folder)
    images = [pixels(folder / "images/a.png"), np.asarray(Image.open(folder / "images/b.png").resize((20, 16), 4))]
    masks = [pixels(folder / "masks/a.png"), np.repeat([[1], [0]], 8, 0).repeat(20, 1)]
    info = load_dataset_info(out)
    for index in range(3):
        name = f"{index:06d}.png"
        assert np.array_equal(pixels(out / "images" / name), images[index % 2])
        assert np.array_equal(pixels(out / "samples" / name), 255 - images[index % 2])
        assert np.array_equal(load_mask(out / "labels" / name, info), masks[index % 2])
        assert replay(out / "metadata.jsonl", index + 1)[1] is True
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["source_image"]["stem"] for row in rows] == ["a", "b", "a"]


def test_without_masks_there_are_no_labels(inverting, folder):
    out = run(inverting, folder, mask_source=source(folder, masks=None))
    assert not (out / "labels").exists()
    assert load_dataset_info(out).class_names == []
    assert np.array_equal(pixels(out / "samples/000000.png"), 255 - pixels(folder / "images/a.png"))
    assert replay(out / "metadata.jsonl", 2)[1] is True


def test_images_of_a_split_are_turned_with_their_masks(inverting, tmp_path):
    masks = {"kind": "split", "dataset": str(inverting[0]), "split": "test"}
    out = draw(inverting, tmp_path / "out", num_samples=3, solver={}, mask_source=masks)
    for index in range(3):
        name = f"{index:06d}.png"
        assert np.array_equal(pixels(out / "samples" / name), 255 - pixels(out / "images" / name))
        assert replay(out / "metadata.jsonl", index + 1)[1] is True


def test_shards_complete_a_run(inverting, folder):
    whole = run(inverting, folder, num_samples=5)
    values = load_json(whole / "sampling.json")["config"] | {"output_dir": str(folder / "parts"), "batch_size": 2}
    config = parse_config(values, SampleConfig)
    for number in (2, 1):
        sample(config, shard=Shard(number, 2))
    sample(config)
    for index in range(5):
        name = f"samples/{index:06d}.png"
        assert np.array_equal(pixels(folder / "parts" / name), pixels(whole / name))


def test_a_changed_image_is_named_in_replay(inverting, folder):
    out = run(inverting, folder)
    Image.fromarray(255 - pixels(folder / "images/a.png")).save(folder / "images/a.png")
    with pytest.raises(InputError, match=r"images/a have changed since sampling"):
        replay(out / "metadata.jsonl", 1)


def test_what_cannot_be_is_one_line(inverting, folder, monkeypatch):
    procedural = {"kind": "procedural", "dataset": str(inverting[0])}
    empty = folder / "empty"
    empty.mkdir()
    for masks, message in [
        (procedural, "mask_source.kind 'procedural': has no images, which generators of kind semantic_diffusion need"),
        ({"kind": "none"}, "mask_source.kind 'none': has no images"),
        (source(folder, folder=str(empty)), "empty: contains no images"),
        (source(folder, folder=str(folder / "gone")), "gone: no such folder"),
        (source(folder, masks=str(empty)), "empty: has no mask 'a'"),
    ]:
        with pytest.raises(InputError, match=message):
            run(inverting, folder, mask_source=masks)
        assert not (folder / "out").exists()
    shutil.copyfile(folder / "masks/a.png", folder / "masks/b.png")
    with pytest.raises(InputError, match=r"b\.png: the mask is 16x16, but its image is 30x24"):
        run(inverting, folder)
    Image.fromarray(np.zeros((8, 30), np.uint8)).save(folder / "images/0.png")
    with pytest.raises(InputError, match=r"0\.png: the image is 30x8, smaller than the generator's image_size 16"):
        run(inverting, folder)
    with pytest.raises(InputError, match=r"coco needs masks, but mask_source\.kind has no masks: 'images'"):
        run(inverting, folder, mask_source=source(folder, masks=None), coco=True)
    monkeypatch.undo()
    with pytest.raises(InputError, match="'images': not applicable to generators of kind semantic_diffusion"):
        run(inverting, folder)

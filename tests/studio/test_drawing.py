"""The studio without its page."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import load_dataset_info, load_mask
from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.evaluation.sets import find_generated
from steelgen.sampling.masks import SourceMask
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.studio.session import Cancelled, Studio
from tests.data.samples import BUNDLED


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return Studio(Path("bundled:uhcs"), BUNDLED / "uhcs", tmp_path_factory.mktemp("studio") / "kept")


@pytest.fixture
def mask():
    indices = np.zeros((64, 64), np.uint8)
    indices[10:30, 5:50] = 1
    indices[40:50, 20:40] = 2
    return SourceMask(indices, None, "painted")


def test_draws_what_sample_draws_for_the_same_mask_and_seed(studio, mask, tmp_path):
    drawn = list(studio.generate(mask, [5, 6], guidance_scale=2.0))
    assert [pair.seed for pair in drawn] == [5, 6]
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask.mask).save(tmp_path / "masks" / "a.png")
    values = {
        "generator": "bundled:uhcs",
        "output_dir": str(tmp_path / "out"),
        "mask_source": {"kind": "folder", "folder": str(tmp_path / "masks")},
        "num_samples": 2,
        "seed": 5,
        "solver": {"guidance_scale": 2.0},
    }
    out = sample(parse_config(values, SampleConfig))
    for index, pair in enumerate(drawn):
        assert (pair.image == load_image(out / "samples" / f"{index:06d}.png")).all()


def test_kept_pairs_lie_as_samples_do_and_can_be_drawn_again(studio, mask, tmp_path):
    first, second = studio.generate(mask, [5, 6])
    studio.out = tmp_path / "kept"
    assert studio.save([second]) == ["000000"]
    assert studio.save([first, second]) == ["000001", "000002"]
    assert {path.name for path in studio.out.iterdir()} == {
        *("samples", "labels", "colored_labels"),
        *("dataset.json", "sampling.json", "metadata.jsonl", "contact_sheet.png"),
    }
    rows = [json.loads(line) for line in (studio.out / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [6, 5, 6]
    assert {row["source_mask"] for row in rows} == {"painted"}
    info = load_dataset_info(studio.out)
    assert info.class_names == studio.info.class_names
    assert (load_mask(studio.out / "labels" / "000001.png", info) == mask.mask).all()
    for line in (1, 2):
        _, same = replay(studio.out / "metadata.jsonl", line)
        assert same
    assert json.loads((studio.out / "sampling.json").read_text())["config"]["num_samples"] == 3


def test_kept_pairs_have_the_keys_of_sampled_ones(studio, mask, tmp_path):
    studio.out = tmp_path / "kept"
    studio.save(list(studio.generate(mask, [0, 1, 2, 3])))
    values = {"generator": "bundled:uhcs", "output_dir": str(tmp_path / "out"), "num_samples": 1}
    values |= {"mask_source": {"kind": "folder", "folder": "bundled:uhcs/masks"}}
    out = sample(parse_config(values, SampleConfig))
    for name in ("sampling.json", "dataset.json"):
        kept, sampled = (json.loads((folder / name).read_text()) for folder in (studio.out, out))
        assert kept.keys() == sampled.keys()
    kept, sampled = ((f / "metadata.jsonl").read_text().splitlines()[0] for f in (studio.out, out))
    assert json.loads(kept).keys() == json.loads(sampled).keys()
    assert len(find_generated(studio.out).images) == 4


def test_mask_from_a_split_brings_its_micrograph(studio, tmp_path):
    assert list(studio.sources) == ["bundled masks", "train split", "val split", "test split"]
    taken = studio.get_mask("train split", 3)
    assert taken.image is not None
    assert taken.mask.max() < studio.info.num_classes
    assert (studio.get_mask("train split", 3).mask == taken.mask).all()
    studio.out = tmp_path / "kept"
    studio.save(list(studio.generate(taken, [0])))
    assert (load_image(studio.out / "images" / "000000.png") == taken.image).all()
    with pytest.raises(InputError, match="unknown mask source"):
        studio.get_mask("../../etc", 0)


def test_a_copy_is_told_from_a_drawing(studio, mask, monkeypatch):
    real = studio.get_mask("train split", 0)
    drawn = next(studio.generate(mask, [0]))
    assert drawn.nearest is not None
    assert not drawn.nearest.is_copy
    monkeypatch.setattr("steelgen.studio.session.generate_images", lambda *_: [real.image])
    copied = next(studio.generate(mask, [0])).nearest
    assert copied.is_copy
    assert real.source.endswith(copied.stem)
    assert np.abs(copied.image.astype(int) - real.image).mean() < 8


def test_zip_is_a_folder_of_samples(studio, mask):
    drawn = list(studio.generate(mask, [1, 2]))
    with zipfile.ZipFile(io.BytesIO(studio.build_zip(drawn))) as archive:
        names = archive.namelist()
        assert {"samples/samples/000001.png", "samples/labels/000001.png", "samples/metadata.jsonl"} <= set(names)
        image = np.asarray(Image.open(io.BytesIO(archive.read("samples/samples/000001.png"))))
    assert (image == drawn[1].image).all()


def test_progress_counts_up_and_a_cancelled_drawing_ends_at_once(studio, mask):
    threads, told = torch.get_num_threads(), []
    list(studio.generate(mask, [0, 1], report=lambda done, total: told.append((done, total))))
    assert told == [*((done, 24) for done in range(24)), (24, 24)]
    told.clear()
    asked = studio.generate(mask, [0, 1], 1.5, lambda *step: told.append(step), lambda: len(told) == 3)
    with pytest.raises(Cancelled):
        list(asked)
    assert len(told) == 3
    assert torch.get_num_threads() == threads
    assert len(list(studio.generate(mask, [0]))) == 1


def test_folder_in_use_for_something_else_is_refused(tmp_path, studio, mask):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already in use"):
        Studio(Path("bundled:uhcs"), out=tmp_path / "other")
    values = {"generator": "bundled:uhcs", "output_dir": str(tmp_path / "out"), "num_samples": 1}
    values |= {"mask_source": {"kind": "folder", "folder": "bundled:uhcs/masks"}, "solver": {"num_inference_steps": 1}}
    out = sample(parse_config(values, SampleConfig))
    with pytest.raises(InputError, match="another mask_source"):
        Studio(Path("bundled:uhcs"), out=out)
    studio.out = out
    with pytest.raises(InputError, match="another mask_source"):
        studio.save(list(studio.generate(mask, [0])))
    assert len(list((out / "samples").iterdir())) == 1


def test_dataset_of_other_classes_is_refused(tmp_path, tiny_dataset):
    with pytest.raises(InputError, match="3 classes, the generator was trained with 4"):
        Studio(Path("bundled:uhcs"), tiny_dataset, tmp_path / "kept")

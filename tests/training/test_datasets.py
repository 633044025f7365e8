"""Training on several datasets at once: shares of the crops, classes side by side, the null mask, validation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.data.folder import load_dataset_info, save_dataset_info
from steelgen.data.images import load_index_image, save_image
from steelgen.data.placement import CropGeometry, scale_whole
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.generators.families import load_generator
from steelgen.sampling.sample import sample
from steelgen.training.loop import finetune, train
from steelgen.training.micrographs import crop_geometry, load_held_out
from steelgen.training.setup import prepare
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.training.test_loop import Recorder

_GEOMETRY = CropGeometry(16, 24)


@pytest.fixture
def mixed(tmp_path):
    """Training values for `a` (3 classes, 4 micrographs), `b` (2 classes, 9) and `plain` (no masks, 3)."""
    write_tiny_dataset(tmp_path / "a")
    write_tiny_dataset(tmp_path / "b", size=(64, 56), num_classes=2, splits=(("train", 9),))
    write_tiny_dataset(tmp_path / "plain", splits=(("train", 3), ("val", 1)))
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "plain" / split / "masks")
    info = load_dataset_info(tmp_path / "plain")
    save_dataset_info(tmp_path / "plain", info.model_copy(update={"class_names": [], "palette": []}))
    values = tiny_train_config("", tmp_path / "run")
    values["data"] = {
        "image_size": 16,
        "crop_size": 24,
        "datasets": [
            {"dataset": str(tmp_path / "a"), "weight": 2},
            {"dataset": str(tmp_path / "b"), "weight": 1, "crop_size": 40},
            {"dataset": str(tmp_path / "plain"), "weight": 1, "scale_range": [0.7, 0.9]},
        ],
    }
    return values


def build(values):
    config = parse_config(values, TrainConfig)
    generator, micrographs = prepare(config)
    return config, generator, CropDataset(micrographs, generator.geometry, config.seed, True)


def members(crops, numbers):
    return np.array([crops.micrographs.members[crops.micrograph_index(n)] for n in numbers])


def test_crops_have_the_shares_of_the_weights_and_each_micrograph_of_a_set_its_equal_part(mixed):
    _, _, crops = build(mixed)
    numbers = range(64 * 20)
    counts = np.bincount([crops.micrograph_index(n) for n in numbers], minlength=16) / len(numbers)
    expected = np.repeat([0.5 / 4, 0.25 / 9, 0.25 / 3], [4, 9, 3])
    assert np.abs(counts - expected).max() < 0.01
    # Stratified: in each block of 64 crops every set has its share within one crop at each end.
    for start in range(0, len(numbers), 64):
        share = np.bincount(members(crops, range(start, start + 64)), minlength=3)
        assert np.abs(share - [32, 16, 16]).max() <= 1


def test_the_set_of_a_crop_is_independent_of_its_timestep(mixed):
    """Both are low-discrepancy sequences; if they were one, a set would see only a part of the noise schedule."""
    config, generator, crops = build(mixed)
    from steelgen.generators.families import build_trainable

    draw = build_trainable(generator, config).randomness(config.seed)
    numbers = range(64 * 10)
    fractions, sets = np.array([float(draw(n)["fraction"]) for n in numbers]), members(crops, numbers)
    for index in range(3):
        assert kstest(fractions[sets == index], "uniform").pvalue > 0.01


def test_a_crop_is_a_function_of_its_number_and_fits_its_own_set(mixed):
    _, _, crops = build(mixed)
    _, _, again = build(mixed)
    edges = {0: set(), 1: set(), 2: set()}
    for number in [700, 3, 128, *range(60)]:
        for one, other in zip(crops.cut(number), again.cut(number), strict=True):
            assert np.array_equal(one, other)
        edges[int(members(crops, [number])[0])].add(crops.place(number).edge)
    assert edges[0] == {24}
    assert edges[1] == {40}
    assert 16 <= min(edges[2]) < max(edges[2]) <= 22  # 24 times 0.7 to 0.9


def test_classes_stand_side_by_side_and_an_unlabeled_set_has_the_null_mask(mixed, tmp_path):
    _, generator, crops = build(mixed)
    assert generator.info.class_names == ["a/matrix", "a/island", "film", "b/matrix", "b/island"]
    assert len(generator.info.palette) == generator.network.config["num_classes"] == 5
    found = [{int(value) for value in np.unique(mask)} for mask in crops.micrographs.masks]
    assert set.union(*found[:4]) == {0, 1, 2}
    assert set.union(*found[4:13]) == {3, 4}
    assert set.union(*found[13:]) == {255}
    original = load_micrographs(tmp_path / "b", "train")
    for mask, moved in zip(original.masks, crops.micrographs.masks[4:13], strict=True):
        assert np.array_equal(np.asarray(mask) + 3, moved)


def test_classes_of_the_same_name_merge_on_demand(mixed):
    mixed["data"]["merge_classes"] = True
    _, generator, crops = build(mixed)
    assert generator.info.class_names == ["matrix", "island", "film"]
    assert {int(value) for value in np.unique(crops.micrographs.masks[4])} == {0, 1}


def test_an_unconditional_entry_gives_no_planes(mixed):
    mixed["data"]["datasets"][0]["unconditional"] = True
    _, generator, crops = build(mixed)
    assert generator.info.class_names == ["matrix", "island"]
    assert (np.asarray(crops.micrographs.masks[0]) == 255).all()


def test_gray_levels_are_standardized_by_the_shares(mixed):
    _, generator, crops = build(mixed)
    sample = np.concatenate([crops.micrographs.images[crops.micrograph_index(n)].ravel() for n in range(64 * 6)])
    mean, deviation = generator.intensity
    assert np.isclose(mean, sample.mean() / 127.5 - 1, atol=0.02)
    assert np.isclose(deviation, sample.std() / 127.5, atol=0.02)


def test_validation_pools_the_sets_that_hold_micrographs_out(mixed):
    config, generator, _ = build(mixed)
    held_out = load_held_out(config, generator)
    assert [share.name for share in held_out.shares] == ["a", "plain"]
    assert held_out.info.class_names == generator.info.class_names
    mixed["validation"] = {"every": 2, "crops": 16, "bins": 2}
    mixed["measurement"] = {"every": None}
    train(parse_config(mixed, TrainConfig), Recorder())
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if "val_loss" in row)
    crops = CropDataset(held_out, generator.geometry, 0, False)
    count = np.bincount(members(crops, range(16)), minlength=2)
    assert np.isclose(row["val_loss"], (count[0] * row["val_loss/a"] + count[1] * row["val_loss/plain"]) / 16)


def test_training_resumes_bit_by_bit_and_refuses_changed_data(mixed, tmp_path):
    train(parse_config(mixed, TrainConfig), Recorder())
    part = {**mixed, "run_dir": str(tmp_path / "part"), "train": {**mixed["train"], "max_steps": 2}}
    train(parse_config(part, TrainConfig), Recorder())
    # The folders may move, since digests are compared.
    (tmp_path / "plain").rename(tmp_path / "moved")
    part["data"]["datasets"][2]["dataset"] = str(tmp_path / "moved")
    part["train"] = mixed["train"]
    train(parse_config(part, TrainConfig), Recorder(), resume=True)
    one, other = (load_generator(tmp_path / name).network.state_dict() for name in ("run", "part"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    part["data"]["datasets"][0]["weight"] = 3
    with pytest.raises(InputError, match=r"data\.datasets was"):
        train(parse_config(part, TrainConfig), Recorder(), resume=True)


def test_finetuning_takes_a_model_of_several_sets_to_one(mixed, tmp_path):
    train(parse_config(mixed, TrainConfig), Recorder())
    values = {name: value for name, value in mixed.items() if name != "generator"}
    values |= {"run_dir": str(tmp_path / "tuned"), "checkpoint": str(tmp_path / "run")}
    values["data"] = {"dataset": str(tmp_path / "a"), "image_size": 16, "crop_size": 24}
    finetune(parse_config(values, FinetuneConfig), Recorder())
    note = json.loads((tmp_path / "tuned/transfer.json").read_text())["note"]
    assert "classes kept: film; classes new: matrix, island" in note


def test_sampling_takes_the_masks_of_one_of_the_sets(mixed, tmp_path):
    train(parse_config(mixed, TrainConfig), Recorder())
    values = {"generator": str(tmp_path / "run"), "output_dir": str(tmp_path / "out"), "num_samples": 2}
    values |= {"solver": {"num_inference_steps": 1}}
    values |= {"mask_source": {"kind": "split", "dataset": str(tmp_path / "b"), "augment": False, "whole": True}}
    sample(parse_config(values, SampleConfig))
    originals = load_micrographs(tmp_path / "b", "train")
    for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        mask = originals.masks[originals.stems.index(Path(row["source_mask"]).stem)]
        assert np.array_equal(load_index_image(tmp_path / "out" / row["mask"]), scale_whole(mask, _GEOMETRY) + 3)
    assert load_dataset_info(tmp_path / "out").class_names[3:] == ["b/matrix", "b/island"]


def test_the_copy_search_knows_the_crop_size_of_each_set(mixed, tmp_path):
    rng = np.random.default_rng(0)
    for path in (tmp_path / "b/train/images").iterdir():
        texture = gaussian_filter(rng.normal(size=(64, 56)), 3)
        save_image(path, (128 + 40 * texture / texture.std()).clip(0, 255).astype(np.uint8))
    config, _, crops = build(mixed)
    search = CopySearch(crops.micrographs, crop_geometry(config), 16)
    number = next(n for n in range(99) if members(crops, [n])[0] == 1)
    match = search.find(crops.cut(number)[0][None])[0]
    assert (match.micrograph, match.ratio < 0.2) == (crops.micrograph_index(number), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "x"}, "either dataset or datasets is required, not both"),
        ({"datasets": []}, "either dataset or datasets is required"),
        ({"num_classes": 2}, "num_classes: not applicable with datasets"),
        ({"split": "test"}, "split: not applicable with datasets"),
        ({"datasets": [], "dataset": "x", "merge_classes": True}, "merge_classes: not applicable without datasets"),
        ({"datasets": [{"dataset": "x", "weight": 0}]}, r"data\.datasets\.0\.weight"),
        ({"datasets": [{"dataset": "x", "wieght": 1}]}, "did you mean 'weight'"),
        ({"datasets": [{"dataset": "x", "split": "val"}]}, "validation.split 'val' is the training split"),
    ],
)
def test_wrong_configs_are_one_line(mixed, changes, message):
    with pytest.raises(InputError, match=message):
        parse_config({**mixed, "data": {**mixed["data"], **changes}}, TrainConfig)


def test_a_missing_split_is_named(mixed, tmp_path):
    mixed["data"]["datasets"][1]["split"] = "test"
    with pytest.raises(InputError, match=f"{tmp_path / 'b'}: no split 'test'"):
        build(mixed)

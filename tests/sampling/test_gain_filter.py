"""The filter by gain: planted faults, whole runs, weights that a utility study uses, bad input."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from steelgen.config.base import parse_config
from steelgen.config.sample import FilterSection
from steelgen.config.utility import UtilityConfig, parse_code
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.folder import save_dataset_info, save_metadata
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.utility.data import load_study
from steelgen.evaluation.utility.training_set import TrainingSet
from steelgen.files import load_json
from steelgen.sampling.filtering import LOW_GAIN, build_filter
from steelgen.sampling.replay import replay
from tests.evaluation.conftest import INFO, save_pairs
from tests.sampling.test_sample import draw, read_all

QUICK = {"architecture": "unet", "base_channels": 8, "num_levels": 2, "enlargement": 1, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STEELGEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    root = tmp_path_factory.mktemp("gain") / "discs"
    for seed, (split, count) in enumerate({"train": 4, "val": 2, "more": 6}.items()):
        save_pairs(root / split / "images", root / split / "masks", count, 96, seed)
    save_dataset_info(root, INFO)
    return root


@pytest.mark.parametrize("fault", ["swapped classes", "mask of another", "shifted"])
def test_wrong_pairs_are_dropped_and_right_ones_kept(discs, fault):
    values = {"dataset": str(discs), "min_iou": 0, "max_correlation": 1, "segmenter": QUICK, "gain": {"steps": 20}}
    geometry = CropGeometry(32, 32)
    pair_filter = build_filter(parse_config(values, FilterSection), INFO, geometry)
    images, masks = cut_crops(load_micrographs(discs, "more"), geometry, 40, seed=5)
    wrong = {
        "swapped classes": 1 - masks,
        "mask of another": np.roll(masks, 1, axis=0),
        "shifted": np.roll(masks, (9, 9), axis=(1, 2)),
    }[fault]
    dropped = [pair_filter.weigh(*pair) is None for pair in zip(images, wrong, strict=True)]
    assert np.mean(dropped) >= 0.8
    right = [pair_filter.weigh(*pair) for pair in zip(images, masks, strict=True)]
    assert np.mean([each is None for each in right]) <= 0.2
    assert all(0 <= each["gain"] <= 1 and "pair_weight" not in each for each in right if each)


def filter_by_gain(dataset, **gain):
    return {
        "dataset": str(dataset),
        "min_iou": 0,
        "max_correlation": 1,
        "segmenter": {**QUICK, "num_levels": 1},
        "max_attempts": 60,
        "gain": {"steps": 20, "crops": 16, **gain},
    }


def read_rows(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_a_run_drops_counts_and_weighs(trained, tmp_path):
    dataset = shutil.copytree(trained[0], tmp_path / "data")
    shutil.rmtree(dataset / "test")  # nothing may read it
    source = {"kind": "split", "dataset": str(dataset)}
    every = draw(
        trained, tmp_path / "all", mask_source=source, num_samples=12, filter=filter_by_gain(dataset, min_agreement=-1)
    )
    gains = [row["gain"] for row in read_rows(every)]
    assert Counter(row["seed"] for row in read_rows(every)) == Counter(range(12))
    limit = float(np.median(gains))
    values = filter_by_gain(dataset, min_agreement=limit, weigh=True)
    out = draw(trained, tmp_path / "out", mask_source=source, num_samples=12, filter=values)
    rows, low = read_rows(out), sum(gain < limit for gain in gains)
    assert sum(row["seed"] >= 10**9 for row in rows) == low > 0
    assert all(row["gain"] >= limit and row["pair_weight"] == max(row["gain"], 0) for row in rows)
    assert [row["gain"] for row in rows if row["seed"] < 12] == [gain for gain in gains if gain >= limit]
    dropped = sum(sum(row["dropped"].values()) for row in rows)
    assert load_json(out / "sampling.json")["dropped"] == {LOW_GAIN: dropped}
    assert dropped >= low
    assert replay(out / "metadata.jsonl", 3)[1] is True
    one = draw(trained, tmp_path / "one", mask_source=source, num_samples=12, filter=values, batch_size=1)
    assert read_all(one) == read_all(out)


def test_bad_input_is_one_line(trained, tmp_path):
    dataset = shutil.copytree(trained[0], tmp_path / "data")
    values = filter_by_gain(dataset, min_agreement=0.9999)
    with pytest.raises(InputError, match=r"lower filter\.gain\.min_agreement, raise filter\.max_attempts"):
        draw(trained, tmp_path / "out", filter={**values, "max_attempts": 2})
    with pytest.raises(InputError, match="split must be train, not val"):
        parse_config({**values, "split": "val"}, FilterSection)
    with pytest.raises(InputError, match="min_agreement"):
        parse_config(filter_by_gain(dataset, min_agreement=1), FilterSection)
    shutil.rmtree(dataset / "val")
    with pytest.raises(InputError, match=r"data.*val"):
        draw(trained, tmp_path / "other", filter=values)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def study(discs, tmp_path):
    """(config of a study, samples folder, function that writes the weights of its eight pairs)."""
    folder = tmp_path / "generated"
    save_pairs(folder / "samples", folder / "labels", 8, 32, 9)
    values = {
        "dataset": str(discs),
        "generated": str(folder),
        "output_dir": str(tmp_path / "study"),
        "geometry": {"image_size": 32},
        "test_split": "more",
    }

    def weigh(weights):
        rows = [{"file_name": f"samples/{number:03d}.png"} for number in range(8)]
        save_metadata(
            folder,
            [
                row if weight is None else {**row, "pair_weight": weight}
                for row, weight in zip(rows, weights, strict=True)
            ],
        )

    return parse_config(values, UtilityConfig), folder, weigh


@pytest.mark.parametrize("augmentation", [None, {}])
def test_a_study_shows_pairs_in_proportion_to_their_weights(study, augmentation):
    config, _, weigh = study
    training = config.training.model_validate({"augmentation": augmentation})
    plain = load_study(config)
    assert plain.weights is None
    weights = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0.5])
    weigh(weights.tolist())
    weighted = load_study(config)
    assert any("pair_weight" in note for note in weighted.notes)
    assert weighted.compute_hash() != plain.compute_hash()
    assert weighted.describe_inputs()["dataset"] == plain.describe_inputs()["dataset"]
    assert weighted.describe_inputs()["generated"] != plain.describe_inputs()["generated"]
    pairs = TrainingSet(weighted, parse_code("R000FALL"), 0, training).generated
    counts = np.bincount([pairs.micrograph_index(number) for number in range(2048)], minlength=8)
    assert counts[[0, 6]].tolist() == [0, 0]
    assert counts / 2048 == pytest.approx(weights / weights.sum(), abs=0.04)
    assert len({pairs.micrograph_index(number) for number in range(40)}) >= 5  # mixed, not one after the other
    even = TrainingSet(plain, parse_code("R000FALL"), 0, training).generated
    assert np.bincount([even.micrograph_index(number) for number in range(2048)]).min() > 200


def test_weights_are_found_in_both_places_of_the_dataset_format(study):
    config, folder, weigh = study
    weights = [float(number) for number in range(8)]
    weigh(weights)
    (folder / "train").mkdir()
    for old, new in (("samples", "images"), ("labels", "masks")):
        (folder / old).rename(folder / "train" / new)
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "train" / "metadata.jsonl").write_text(lines.replace("samples/", "images/"))
    (folder / "metadata.jsonl").write_text(lines.replace("samples/", "train/images/"))
    for generated in (folder, folder / "train"):
        data = load_study(config.model_copy(update={"generated": generated}))
        assert dict(zip(data.generated.stems, data.weights, strict=True)) == {
            f"{number:03d}.png": weight for number, weight in enumerate(weights)
        }


def test_weights_that_cannot_be_used_are_named(study):
    config, folder, weigh = study
    for weights, message in (
        ([1] * 7 + [None], r"metadata\.jsonl: samples/007\.png has no pair_weight, but 7 other pairs do"),
        ([0] * 8, "pair_weight is 0 for all pairs"),
        ([1] * 7 + [-1], r"samples/007\.png: pair_weight"),
        ([1] * 7 + ["1"], r"samples/007\.png: pair_weight"),
    ):
        weigh(weights)
        with pytest.raises(InputError, match=message) as error:
            load_study(config)
        assert "\n" not in str(error.value)
    weigh([0] * 7 + [1])
    data = load_study(config)
    with pytest.raises(InputError, match="R1F1: all of the 1 pairs of seed 0 have pair_weight 0"):
        TrainingSet(data, parse_code("R1F1"), 0, config.training)
    # Metadata of other tools, without weights, is not read.
    Path(folder / "metadata.jsonl").write_text("[]\n")
    assert load_study(config).weights is None

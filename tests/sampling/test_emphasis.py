"""Masks drawn by what a segmenter gets wrong: weights in closed form, frequencies, a made world, whole runs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.mask_sources import SplitMasks
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.steering import EmphasisSection
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_mask, save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.labeler import label_micrograph, load_labeler
from steelgen.evaluation.segment import train_labeler
from steelgen.files import load_json
from steelgen.sampling.emphasis import ClassErrors, emphasize, measure_class_errors
from steelgen.sampling.masks import BatchedMaskSource, SourceMask, SplitSource
from steelgen.sampling.replay import replay
from tests.sampling.test_sample import build_values, draw, read_all

INFO = DatasetInfo(name="world", class_names=["matrix", "island", "film"])
GRAY = (60, 180, 63)
"""The film looks like the matrix, so that a segmenter confuses the two."""


def write_world(root, film=(("train", 2), ("val", 2), ("test", 2))):
    """Micrographs of 48 px; all have an island, the first `film` of each split's eight a small film."""
    rng = np.random.default_rng(0)
    for split, count in film:
        for index in range(8):
            mask = np.zeros((48, 48), np.uint8)
            top, left = rng.integers(0, 24, 2)
            mask[top : top + 24, left : left + 24] = 1
            if index < count:
                mask[:6] = 2
            image = (np.array(GRAY)[mask] + rng.normal(0, 8, mask.shape)).clip(0, 255).astype(np.uint8)
            (root / split / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / "images" / f"{split}{index}.png")
            save_mask(root / split / "masks" / f"{split}{index}.png", mask, INFO.palette)
    save_dataset_info(root, INFO)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(dataset folder without its test split, folder of a segmenter that does not find the film)."""
    root = tmp_path_factory.mktemp("emphasis")
    dataset = write_world(root / "world")
    quick = {"architecture": "unet", "steps": 40, "batch_size": 4, "base_channels": 8, "num_levels": 1}
    values = {"dataset": str(dataset), "output_dir": str(root / "segmenter"), "image_size": 32, "crop_size": 32}
    train_labeler(parse_config({**values, "segmenter": {**quick, "learning_rate": 1e-2}}, SegmentConfig))
    shutil.rmtree(dataset / "test")  # nothing may read it
    return dataset, root / "segmenter"


def test_weights_are_errors_over_shares_with_mean_one():
    errors = ClassErrors(INFO, np.array([0.1, 0.3, 0.6]), np.array([0.7, 0.28, 0.02]))
    assert errors.weights == pytest.approx([0.1 / 0.7, 0.3 / 0.28, 0.6 / 0.02])
    assert errors.shares @ errors.weights == pytest.approx(1)
    unknown = ClassErrors(INFO, np.array([0.2, 0.2, np.nan]), np.array([0.75, 0.25, 0.0]))
    assert unknown.weights == pytest.approx([2 / 3, 2, 1])
    assert unknown.describe()["error"] == {"matrix": 0.2, "island": 0.2, "film": None}
    perfect = ClassErrors(INFO, np.zeros(3), np.array([0.7, 0.28, 0.02]))
    assert perfect.weights.tolist() == [1, 1, 1]


class TwoMasks:
    """Even numbers have only matrix, odd ones a quarter of island; ignored pixels do not count."""

    def draw(self, index):
        mask = np.zeros((4, 5), np.uint8)
        mask[:, 4] = 255
        if index % 2:
            mask[0, :4] = 1
        return SourceMask(mask, None, str(index))

    def draw_batch(self, indices):
        return [self.draw(index) for index in indices]


def test_masks_are_as_frequent_as_their_weights():
    errors = ClassErrors(INFO, np.array([0.2, 0.8, np.nan]), np.array([0.5, 0.5, 0.0]))  # pixel weights 0.4 and 1.6
    config = EmphasisSection(segmenter="x", strength=0.5, candidates=2)
    source = emphasize(TwoMasks(), errors, config, seed=3)
    plain, rich = 0.5 + 0.5 * 0.4, 0.5 + 0.5 * (0.75 * 0.4 + 0.25 * 1.6)
    drawn = [source.draw(index) for index in range(3000)]
    numbers = np.array([int(each.source) for each in drawn])
    assert (numbers // 2).tolist() == list(range(3000))  # each candidate is one of its own
    share, expected = (numbers % 2).mean(), rich / (plain + rich)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 3000)
    assert {each.emphasis for each in drawn} == {round(plain, 6), round(rich, 6)}
    assert isinstance(source, BatchedMaskSource)
    assert [each.source for each in source.draw_batch([7, 2])] == [drawn[7].source, drawn[2].source]
    certain = emphasize(
        TwoMasks(),
        ClassErrors(INFO, np.array([0, 0.8, np.nan]), np.array([0.5, 0.5, 0])),
        EmphasisSection(segmenter="x", strength=1, candidates=4),
        seed=0,
    )
    assert all(int(certain.draw(index).source) % 2 for index in range(100))


def test_errors_and_doubts_are_those_of_the_validation_pixels(world, tmp_path):
    """Of an ensemble of heads, whose confidence is their agreement."""
    dataset, _ = world
    values = {
        "dataset": str(dataset),
        "output_dir": str(tmp_path / "heads"),
        "test_split": "more",
        "image_size": 32,
        "crop_size": 32,
        "features": {"kind": "multiscale", "sigma_max": 2, "crops": 8, "steps": 20, "ensemble_size": 3},
    }
    shutil.copytree(dataset, tmp_path / "world")
    shutil.copytree(dataset / "train", tmp_path / "world" / "more")
    train_labeler(parse_config({**values, "dataset": str(tmp_path / "world")}, SegmentConfig))
    measured = {
        measure: measure_class_errors(EmphasisSection(segmenter=tmp_path / "heads", measure=measure), INFO).errors
        for measure in ("error", "doubt")
    }
    labeler, micrographs = load_labeler(tmp_path / "heads"), load_micrographs(dataset, "val")
    labeled = [label_micrograph(labeler, image) for image in micrographs.images]
    true = np.stack(micrographs.masks)
    predicted, confidence = (np.stack(part) for part in zip(*labeled, strict=True))
    for index in range(3):
        both, either = (true == index) & (predicted == index), (true == index) | (predicted == index)
        assert measured["error"][index] == pytest.approx(1 - both.sum() / either.sum(), abs=1e-5)
        assert measured["doubt"][index] == pytest.approx(1 - confidence[true == index].mean(), abs=1e-5)
    assert not np.allclose(measured["error"], measured["doubt"], atol=0.01)


@pytest.mark.parametrize("measure", ["error", "doubt"])
def test_a_rare_and_confused_class_is_drawn_more_often(world, measure):
    dataset, segmenter = world
    config = EmphasisSection(segmenter=segmenter, measure=measure, strength=1)
    errors = measure_class_errors(config, INFO)
    shares = errors.describe()["share"]
    assert shares["film"] == pytest.approx(2 * 6 / (8 * 48), abs=1e-3)
    assert errors.errors[2] > 2 * errors.errors[1]
    plain = SplitSource(SplitMasks(dataset=dataset), INFO, CropGeometry(32, 32), 0)
    chosen = emphasize(plain, errors, config, 0)

    def measure_film(source):
        return np.mean([(source.draw(index).mask == 2).mean() for index in range(150)])

    assert measure_film(chosen) > 2.5 * measure_film(plain)
    # A class that is as rare but found is not drawn more often.
    found = ClassErrors(INFO, np.array([0.4, 0.4, 0.0]), errors.shares)
    assert measure_film(emphasize(plain, found, config, 0)) < 1.1 * measure_film(plain)


def test_a_folder_records_the_emphasis_and_replays(trained, world, tmp_path):
    dataset, segmenter = world
    values = {
        "mask_source": {"kind": "split", "dataset": str(dataset)},
        "emphasis": {"segmenter": str(segmenter), "strength": 0.9},
        "num_samples": 12,
    }
    out = draw(trained, tmp_path / "out", **values)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    told = load_json(out / "emphasis.json")
    weights, info = told["weight"], load_dataset_info(out)
    for row in rows:
        shares = [float((load_mask(out / row["mask"], info) == index).mean()) for index in range(3)]
        mean = sum(share * weights[name] for share, name in zip(shares, INFO.class_names, strict=True))
        assert row["emphasis"] == pytest.approx(0.1 + 0.9 * mean, abs=1e-4)
    assert load_json(out / "sampling.json")["drawn_by"]["emphasis.segmenter"]
    assert replay(out / "metadata.jsonl", 5)[1] is True
    other = draw(trained, tmp_path / "other", **values, batch_size=1)
    assert read_all(other) == read_all(out)
    plain = draw(trained, tmp_path / "plain", **{**values, "emphasis": None})
    assert not (plain / "emphasis.json").exists()
    assert not any("emphasis" in line for line in (plain / "metadata.jsonl").read_text().splitlines())


def test_bad_input_is_one_line(trained, world, tmp_path):
    dataset, segmenter = world
    source = {"kind": "split", "dataset": str(dataset)}

    def refuse(message, section=None, **values):
        emphasis = {"segmenter": str(segmenter), **(section or {})}
        with pytest.raises(InputError, match=message) as error:
            draw(trained, tmp_path / "bad", **{"mask_source": source, "emphasis": emphasis, **values})
        assert "\n" not in str(error.value)
        assert not (tmp_path / "bad").exists()

    refuse("emphasis: not applicable to mask_source.kind 'balanced'", mask_source={**source, "kind": "balanced"})
    refuse("emphasis: not applicable with mask_source.in_order", mask_source={**source, "in_order": True})
    refuse("file_stems 'source': emphasis", file_stems="source")
    refuse("candidates", {"candidates": 1})
    refuse("strength", {"strength": 0})
    refuse("segmenter.json", {"segmenter": str(tmp_path / "missing")})

    def change(name, edit):
        folder = shutil.copytree(segmenter, tmp_path / name)
        described = json.loads((folder / "segmenter.json").read_text())
        edit(described)
        (folder / "segmenter.json").write_text(json.dumps(described))
        return {"segmenter": str(folder)}

    none = change("none", lambda described: described["config"].update(val_split=None))
    refuse("none: .*world has no validation split None; train a segmenter with val_split", none)
    same = change("same", lambda described: described["config"].update(val_split="train"))
    refuse("val_split: 'train' is also the train_split or test_split", same)
    renamed = change("renamed", lambda described: described["dataset"].update(class_names=["a", "b", "c"]))
    refuse("renamed has the classes a, b, c, not matrix, island, film", renamed)


def test_configs_without_emphasis_keep_their_hash():
    from steelgen.config.base import config_to_json
    from steelgen.sampling.formats import select_image_settings

    values = build_values(("data", "run"), "out", filter={"dataset": "data"})
    selected = select_image_settings(config_to_json(parse_config(values, SampleConfig)))
    assert "emphasis" not in selected
    assert "gain" not in selected["filter"]
    told = {**values, "emphasis": {"segmenter": "run"}, "filter": {"dataset": "data", "gain": {}}}
    selected = select_image_settings(config_to_json(parse_config(told, SampleConfig)))
    assert selected["emphasis"]["candidates"] == 8
    assert selected["filter"]["gain"]["min_agreement"] == 0

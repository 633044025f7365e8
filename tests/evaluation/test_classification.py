"""Classification studies: average precision, intervals, pairing, a made set where generated images help, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.cluster.status import run_status
from steelgen.config.base import parse_config
from steelgen.config.classify import ClassifyConfig
from steelgen.config.studies import choose_study
from steelgen.config.utility import parse_code
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.resplit import split_by_presence
from steelgen.errors import InputError
from steelgen.evaluation import study
from steelgen.evaluation.classification.data import ClassifierBatches, load_images
from steelgen.evaluation.classification.statistics import (
    compute_accuracy,
    compute_average_precision,
    compute_balanced_accuracy,
    summarize_scores,
)
from steelgen.evaluation.classification.training import run_classifier_cell
from steelgen.evaluation.judge_utility import judge_utility
from steelgen.evaluation.study import utility
from steelgen.evaluation.study_views import build_study_page
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.verdict import judge_study
from steelgen.models.architectures import find_pretrained_part
from steelgen.models.classifier import build_classifier
from steelgen.shards import Shard

INFO = DatasetInfo(name="textures", class_names=["matrix", "inclusion"])
SIZE = 32


def draw_texture(rng: np.random.Generator, inclusion: bool) -> np.ndarray:
    """A rolled texture with a dark scratch, and with or without a dark inclusion."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = 130 + 60 * gaussian_filter(rng.standard_normal((SIZE, SIZE)), (1, 4)) * 3
    angle, offset = rng.uniform(0, np.pi), rng.uniform(-8, 8)
    image -= 50 * (np.abs((rows - 16) * np.cos(angle) + (columns - 16) * np.sin(angle) - offset) < 1)
    if inclusion:
        y, x = rng.uniform(5, SIZE - 5, 2)
        image -= rng.uniform(40, 90) * ((rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(2, 4) ** 2)
    return image.clip(0, 255).astype(np.uint8)


def save_textures(folder: Path, count: int, seed: int, inclusion: bool) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(draw_texture(rng, inclusion)).save(folder / f"{number:03d}.png")


def save_sides(root: Path, counts_by_split: dict[str, tuple[int, int]]) -> None:
    """Writes sides/without and sides/with as `data split --by-presence` does."""
    for number, (split, counts) in enumerate(counts_by_split.items()):
        for kind in ("images", "masks"):
            (root / "tiles" / split / kind).mkdir(parents=True)
        rng = np.random.default_rng(number)
        for index, inclusion in enumerate(np.repeat([False, True], counts)):
            # Two tiles of each micrograph, of which neither side has both.
            stem = f"{split}{index % (sum(counts) // 2)}_{32 * bool(inclusion)}_0_{32 + 32 * bool(inclusion)}_32"
            Image.fromarray(draw_texture(rng, inclusion)).save(root / "tiles" / split / "images" / f"{stem}.png")
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[0, 0] = inclusion
            save_mask(root / "tiles" / split / "masks" / f"{stem}.png", mask, INFO.palette)
    save_dataset_info(root / "tiles", INFO)
    split_by_presence(root / "tiles", root / "sides", "inclusion")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sides, and generated images with inclusions (good) and without (bad)."""
    root = tmp_path_factory.mktemp("classification")
    save_sides(root, {"train": (24, 8), "val": (12, 12), "test": (40, 40)})
    save_textures(root / "good", 48, 77, True)
    save_textures(root / "bad", 48, 78, False)
    return root


def build_values(root: Path, out: Path, **more: Any) -> dict[str, Any]:
    values = {
        "task": "classify",
        "sound": str(root / "sides" / "without"),
        "defective": str(root / "sides" / "with"),
        "generated": str(root / "good"),
        "output_dir": str(out),
        "num_defective": [2, "ALL"],
        "architectures": ["cnn"],
        "seeds": [0, 1],
        "num_bootstrap": 100,
    }
    training = {"steps": 2, "batch_size": 4, "base_channels": 8, "validate_every": 1, **more.pop("training", {})}
    return {**values, "training": training, **more}


def build_config(root: Path, out: Path, **more: Any) -> ClassifyConfig:
    return parse_config(build_values(root, out, **more), ClassifyConfig)


def read_cells(out: Path) -> dict[str, dict[str, Any]]:
    """All cells without their times."""
    cells = {path.name: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    return {name: {key: value for key, value in cell.items() if key != "seconds"} for name, cell in cells.items()}


def test_metrics_are_torchmetrics_with_repeated_images() -> None:
    from torchmetrics.functional.classification import binary_accuracy, binary_average_precision, multiclass_accuracy

    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.permutation(np.repeat([False, True], [30, 12]))
        scores = (labels + 2 * rng.standard_normal(42)).round(1)  # with ties
        weights = np.concatenate([np.ones((1, 42)), rng.multinomial(42, np.full(42, 1 / 42), size=3)])
        measured = [
            compute(scores, labels, weights)
            for compute in (compute_average_precision, compute_accuracy, compute_balanced_accuracy)
        ]
        for index, counts in enumerate(weights.astype(int)):
            predicted, true = (torch.from_numpy(np.repeat(values, counts)) for values in (scores, labels))
            # Not by sigmoid, which may map equal scores to unequal numbers.
            chances, classes = 0.5 + predicted / 100, true.long()
            expected = [
                binary_average_precision(chances, classes),
                binary_accuracy(chances, classes),
                multiclass_accuracy((predicted > 0).long(), classes, num_classes=2, average="macro"),
            ]
            assert [values[index] for values in measured] == pytest.approx([float(each) for each in expected], abs=1e-6)
        assert compute_average_precision(scores, labels) == pytest.approx(measured[0][:1])
    assert np.isnan(compute_average_precision(np.array([1.0, 2.0]), np.array([False, False])))


def test_intervals_over_images_and_over_seeds_are_scipys() -> None:
    rng, labels = np.random.default_rng(1), np.repeat([False, True], [40, 20])
    scores = np.where(labels, 0.5, -0.5) + rng.standard_normal((15, 60))

    def summarize(chosen: np.ndarray, parents: list[str]) -> dict[str, Any]:
        return summarize_scores({("R2F000", "cnn"): chosen}, labels, parents, {"R2F000": (2, 0)}, 5000)["scores"][0]

    right = (scores[0] > 0) == labels
    expected = scipy.stats.bootstrap((right,), np.mean, method="percentile", n_resamples=5000, rng=2)
    found = summarize(scores[:1], [str(index) for index in range(60)])
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["accuracy_interval"] == pytest.approx(expected.confidence_interval, abs=0.01)

    by_seed = ((scores > 0) == labels).mean(axis=1)
    expected = scipy.stats.bootstrap((by_seed,), np.mean, method="percentile", n_resamples=5000, rng=2)
    found = summarize(scores, ["one"] * 60)
    assert found["accuracy_interval"] == pytest.approx(expected.confidence_interval, abs=0.003)
    # Crossed: wider than over either alone.
    both = summarize(scores, [str(index) for index in range(60)])["accuracy_interval"]
    assert both[1] - both[0] > found["accuracy_interval"][1] - found["accuracy_interval"][0]


def test_crops_of_one_micrograph_count_once() -> None:
    """Four copies of each image tell nothing new: neither values nor intervals change."""
    rng, labels = np.random.default_rng(3), np.repeat([False, True], [20, 15])
    scores = np.where(labels, 0.5, -0.5) + rng.standard_normal((3, 35))
    names = [f"{index:02d}" for index in range(35)]

    def summarize(repeats: int, parents: list[str]) -> dict[str, Any]:
        repeated = np.repeat(scores, repeats, axis=1)
        many = np.repeat(labels, repeats)
        return summarize_scores({("R2F000", "cnn"): repeated}, many, parents, {"R2F000": (2, 0)}, 500)["scores"][0]

    once, four_times = summarize(1, names), summarize(4, [name for name in names for _ in range(4)])
    for key in ("average_precision", "interval", "accuracy_interval", "balanced_accuracy_interval"):
        assert four_times[key] == pytest.approx(once[key])
    apart = summarize(4, [f"{name}{copy}" for name in names for copy in range(4)])
    low, high = once["interval"]
    assert apart["interval"][1] - apart["interval"][0] < 0.7 * (high - low)


def test_one_defective_micrograph_has_no_interval_and_no_verdict() -> None:
    """One of five is missing from a third of the resamples."""
    labels, parents = np.array([False] * 4 + [True]), ["a", "b", "c", "d", "e"]
    scores = {("R2F000", "cnn"): np.zeros((2, 5)), ("R2FALL", "cnn"): np.stack([labels * 1.0] * 2)}
    found = summarize_scores(scores, labels, parents, {"R2F000": (2, 0), "R2FALL": (2, 9)}, 500)
    (row,) = found["differences"]
    assert row["difference"] == pytest.approx(1 - 1 / 5)
    assert row["interval"] is None
    (answer,) = judge_study({"task": "classify", **found})
    assert (answer.standing, answer.question) == (
        "fair",
        "Do 9 generated defective images help in addition to 2 real defective images?",
    )
    assert "too few defective micrographs" in answer.answer


def test_batches_are_balanced_and_paired(root: Path, tmp_path: Path) -> None:
    config = build_config(root, tmp_path, training={"real_share": 0.25})
    data = load_images(config)
    alone, more, whole = (
        ClassifierBatches(data, parse_code(code), 3, config.training) for code in ("R2F000", "R2FALL", "RALLF000")
    )
    assert alone.real.micrographs.stems == more.real.micrographs.stems
    assert set(alone.real.micrographs.stems) < set(whole.real.micrographs.stems)
    picked = [more.pick(number) for number in range(80)]
    assert [crops is more.sound for crops, _ in picked] == [True, False] * 40
    assert [number for crops, number in picked if crops is more.real] == list(range(10))
    assert [number for crops, number in picked if crops is more.generated] == list(range(30))
    assert [alone.pick(number)[1] for number in range(6)] == [0, 0, 1, 1, 2, 2]
    in_proportion = ClassifierBatches(
        data, parse_code("R2FALL"), 3, config.training.model_copy(update={"real_share": None})
    )
    assert in_proportion.real_share == pytest.approx(2 / 50)
    images, labels = more.sample_batch(5)
    again = ClassifierBatches(data, parse_code("R2FALL"), 3, config.training).sample_batch(5)
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(images, again[0])
    # The sound images of a step are the same with and without generated ones.
    assert torch.equal(alone.sound[11]["image"], more.sound[11]["image"])


def test_generated_defects_help_with_two_real_ones_and_sound_images_do_not(root: Path, tmp_path: Path) -> None:
    training = {"steps": 80, "batch_size": 16, "learning_rate": 3e-3, "validate_every": 20}
    out = tmp_path / "out"
    result = utility(build_config(root, out, num_defective=[2], num_bootstrap=400, training=training))
    assert result is not None
    (gain,) = result["differences"]
    assert gain["difference"] > 0.12
    assert gain["interval"][0] > 0
    assert gain["balanced_accuracy"] > 0
    (answer,) = judge_study(result)
    assert answer.standing == "good"
    page = (out / "utility.html").read_text()
    assert "Yes: average precision on held-out real images is higher" in page
    # The same study with images that the generator left sound.
    config = build_config(root, tmp_path / "bad", generated=str(root / "bad"), num_defective=[2], training=training)
    data, baseline = load_images(config), result["scores"][0]["by_seed"]
    cells = [run_classifier_cell(Cell(parse_code("R2FALL"), "cnn", seed), data, config) for seed in (0, 1)]
    precisions = [cell["test"]["average_precision"] for cell in cells]
    assert np.mean(precisions) - np.mean(baseline) < gain["difference"] / 2


def test_a_study_resumes_exactly_and_shards_together_are_the_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = utility(build_config(root, whole))
    assert result is not None
    assert len(read_cells(whole)) == 8
    assert json.loads((whole / "utility.json").read_text()) == result
    done = 0

    def run_some(*arguments: Any) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return run_classifier_cell(*arguments)

    monkeypatch.setattr(study, "run_classifier_cell", run_some)
    with pytest.raises(KeyboardInterrupt):
        utility(build_config(root, parts), shard=Shard(1, 2))
    assert len(read_cells(parts)) == 2
    monkeypatch.undo()
    assert utility(build_config(root, parts), shard=Shard(2, 2)) is None
    gathered = utility(build_config(root, parts), shard=Shard(1, 2))
    assert read_cells(parts) == read_cells(whole)
    assert gathered is not None
    assert gathered["scores"] == result["scores"]
    assert (parts / "data_fraction.png").is_file()
    # Numbers and seeds may be added, nothing else changed; another task is another study.
    lines: list[str] = []
    utility(build_config(root, parts, num_defective=[2, 5, "ALL"], seeds=[0]), lines.append)
    assert len(lines) == 2
    with pytest.raises(InputError, match=r"parts: training\.steps was 2, is now 3"):
        utility(build_config(root, parts, training={"steps": 3}))
    start = json.loads((parts / "study.json").read_text())
    start["config"] = {"dataset": "a", "output_dir": "b"}
    (parts / "study.json").write_text(json.dumps(start))
    with pytest.raises(InputError, match="contains a study of another task, not classify"):
        utility(build_config(root, parts))


def test_cells_of_other_images_are_refused(root: Path, tmp_path: Path) -> None:
    config = build_config(root, tmp_path / "out", num_defective=[2], seeds=[0])
    utility(config)
    path = tmp_path / "out" / "cells" / "R2FALL-cnn-seed0.json"
    cell = json.loads(path.read_text())
    cell["test"]["images"][0] = "sound/other"
    path.write_text(json.dumps(cell))
    with pytest.raises(InputError, match=r"R2FALL-cnn-seed0\.json: was tested on other images"):
        utility(config)
    cell["test"]["scores"].pop()
    path.write_text(json.dumps(cell))
    with pytest.raises(InputError, match=r"R2FALL-cnn-seed0\.json: .*must have one value per image"):
        utility(config)


def test_a_pretrained_encoder_with_a_linear_head(root: Path, tmp_path: Path) -> None:
    network = build_classifier("efficientnet-lite0", 1, weights="auto")
    assert find_pretrained_part(network) is network.encoder
    images = torch.linspace(-1, 1, 40 * 40).reshape(1, 1, 40, 40)
    last = network.encoder(torch.nn.functional.pad(images, (0, 24, 0, 24), mode="replicate"))[-1][0]
    pooled = torch.cat([last.flatten(1).mean(1), last.flatten(1).max(1).values])
    expected = network.head.weight[0] @ pooled + network.head.bias[0]
    torch.testing.assert_close(network(images)[0], expected)
    assert find_pretrained_part(build_classifier("efficientnet-lite0", 1)) is None
    assert find_pretrained_part(build_classifier("cnn", 1, 8, "auto")) is None
    # The features of ImageNet tell inclusions better than chance after a few steps of the head alone.
    training = {"steps": 30, "batch_size": 8, "encoder_factor": 0, "learning_rate": 1e-2, "validate_every": 30}
    config = build_config(root, tmp_path, architectures=["efficientnet-lite0"], training=training)
    cell = run_classifier_cell(Cell(parse_code("RALLFALL"), "efficientnet-lite0", 0), load_images(config), config)
    assert cell["test"]["average_precision"] > 0.6  # half of the test images are defective


def test_classifiers_of_a_seed_start_alike(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steelgen.evaluation.classification import training as module

    started = []

    def remember(network: torch.nn.Module, *_: Any) -> dict[str, Any]:
        started.append({name: value.clone() for name, value in network.state_dict().items()})
        return {}

    monkeypatch.setattr(module, "train_best", remember)
    config = build_config(root, tmp_path)
    data = load_images(config)
    for code, seed in (("R2F000", 0), ("RALLFALL", 0), ("R2F000", 1)):
        torch.rand(seed + 5)  # earlier random numbers must not matter
        run_classifier_cell(Cell(parse_code(code), "cnn", seed), data, config)
    assert all(torch.equal(started[0][name], started[1][name]) for name in started[0])
    assert any(not torch.equal(started[0][name], started[2][name]) for name in started[0])


def test_micrographs_in_train_and_test_give_a_warning(root: Path, tmp_path: Path) -> None:
    assert load_images(build_config(root, tmp_path)).warnings == []
    data = load_images(build_config(root, tmp_path))
    assert data.test_parents == [f"test{index}" for _ in range(2) for index in sorted(range(40), key="{}_".format)]
    sides = shutil.copytree(root / "sides", tmp_path / "sides")
    rows = (sides / "with" / "metadata.jsonl").read_text().replace('"parent": "test7"', '"parent": "train3"')
    (sides / "with" / "metadata.jsonl").write_text(rows)
    (warning,) = load_images(build_config(root, tmp_path, defective=str(sides / "with"))).warnings
    assert warning.startswith("micrographs in both train and test: train3; nothing of them is held out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_defective": [9]}, r"num_defective: 9, but .*with has 8 images in 'train'"),
        ({"num_defective": ["25%"]}, r"num_defective\.0"),
        ({"num_defective": [2, 2]}, "num_defective: 2 is listed twice"),
        ({"codes": ["R2F000P"]}, "codes belongs to task segment; task classify has sound, defective, generated and"),
        ({"folds": 3}, "folds belongs to task segment"),
        ({"architectures": ["unet"]}, r"architectures\.0: .*'cnn', 'efficientnet-lite0'"),
        ({"test_split": "train"}, "train, val, train must be three different splits"),
        ({"val_split": "held_out"}, r"without: no split 'held_out' \(present: train, val, test;"),
        ({"training": {"batch_size": 5}}, r"training\.batch_size: .*multiple of 2"),
        ({"training": {"weights": "none.pt"}, "architectures": ["efficientnet-lite0"]}, r"none\.pt"),
        ({"task": "detect"}, "config: task must be segment, instance or classify .got .detect"),
    ],
)
def test_unusable_configs_give_one_line(changes: dict[str, Any], message: str, root: Path, tmp_path: Path) -> None:
    values = build_values(root, tmp_path / "out", **changes)
    with pytest.raises(InputError, match=message) as caught:
        utility(parse_config(values, choose_study(values, "config")))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unusable_images_give_one_line(root: Path, tmp_path: Path) -> None:
    def refuse(message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            utility(build_config(root, tmp_path / "out", **changes))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refuse("no such folder of generated images", generated=str(tmp_path / "missing"))
    refuse("is also the folder of sound images", defective=str(root / "sides" / "without"))
    generated = shutil.copytree(root / "good", tmp_path / "generated")
    image = Image.open(generated / "003.png")
    image.resize((40, 40)).save(generated / "003.png")
    refuse(r"003\.png: is 40x40 px; the real images are 32 px, gray", generated=str(generated))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(generated / "003.png")
    refuse(r"generated: images are RGB; the real images are 32 px, gray", generated=str(generated))
    defective = shutil.copytree(root / "sides" / "with", tmp_path / "defective")
    shutil.rmtree(defective / "val")
    refuse(r"defective: no split 'val' \(present: train, test;", defective=str(defective))
    for kind in ("images", "masks"):
        (defective / "val" / kind).mkdir(parents=True)
    refuse(r"defective/val: the split is empty", defective=str(defective))
    (wide,) = list((root / "sides" / "with" / "val" / "images").iterdir())[:1]
    for kind in ("images", "masks"):
        mask = np.zeros((32, 48), np.uint8)
        Image.fromarray(mask).save(defective / "val" / kind / wide.name)
    refuse(r"defective/val: val\S+ is 48x32 px; all images must be square and of one size", defective=str(defective))


def test_command(root: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "utility.json", tmp_path / "out"
    path.write_text(json.dumps(build_values(root, out, seeds=[0])))

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "-c", str(path)])
        assert done.exit_code == 0, done.output
        return done.output

    dry = invoke("utility", "--dry-run")
    assert "32 px, gray" in dry
    assert "4 cells, 0 done" in dry
    assert '"num_defective"' in invoke("config", "show", "utility")
    assert "--array=1-4" in invoke("slurm", "render", "utility", "--array", "4")
    done = invoke("utility")
    assert "40 sound and 40 defective images of test" in done
    assert "Do 48 generated defective images help in addition to 2 real defective images?" in done
    status = {part.name: (part.done, part.wanted) for part in run_status(out)}
    assert status == {**{f"R{n}F{m} cnn": (1, 1) for n in ("2", "ALL") for m in ("000", "ALL")}, "gathered": (1, 1)}

    study_result = load_study_result(out)
    assert study_result["task"] == "classify"
    figures, _, warnings = judge_utility(study_result)
    named = {figure.metric: figure for figure in figures}
    difference = named["average precision R2FALL − R2F000 (cnn)"]
    assert difference.value == study_result["differences"][0]["difference"]
    assert difference.interval == study_result["differences"][0]["interval"]
    assert difference.n == (48, 80)
    assert warnings == ["utility: 1 seed: at least 3 are needed to estimate the spread"]
    page = build_study_page(study_result)
    assert "Curve over the number of real defective images" in page
    assert "<script" not in page
    study_result["scores"][0]["average_precision"] = 1.5
    (out / "utility.json").write_text(json.dumps(study_result))
    with pytest.raises(InputError, match=r"utility\.json: scores\.0\.average_precision"):
        load_study_result(out)

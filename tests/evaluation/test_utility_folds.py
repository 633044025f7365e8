"""The utility study over folds: who is tested where, intervals, pairs of each fold, resuming, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from steelgen.cluster.status import run_status
from steelgen.config.base import parse_config
from steelgen.config.utility import UtilityConfig
from steelgen.data.folder import save_dataset_info, save_metadata
from steelgen.errors import InputError
from steelgen.evaluation import study
from steelgen.evaluation.iou import compute_mean_iou
from steelgen.evaluation.study import utility
from steelgen.evaluation.utility.cells import list_cells
from steelgen.evaluation.utility.data import load_studies
from steelgen.evaluation.utility.folds import list_folds
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.utility.statistics import bootstrap_differences, summarize
from steelgen.evaluation.verdict import judge_differences
from tests.evaluation.conftest import INFO, save_pairs
from tests.evaluation.test_utility import TRAINING, read_cells
from tests.evaluation.test_utility_statistics import make_confusion

FOLDS = {"train": ["a", "b", "c", "a", "b", "c"], "test": ["a", "b", "c"]}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """9 micrographs of 48² in two splits, with a column of three folds."""
    root = tmp_path / "real"
    rows = []
    for seed, (split, folds) in enumerate(FOLDS.items()):
        save_pairs(root / split / "images", root / split / "masks", len(folds), 48, seed)
        for number, fold in enumerate(folds):
            for kind in ("images", "masks"):
                (root / split / kind / f"{number:03d}.png").rename(root / split / kind / f"{split}{number}.png")
            rows.append({"file_name": f"{split}/images/{split}{number}.png", "fold": fold})
    save_metadata(root, rows)
    save_dataset_info(root, INFO)
    return root


def build_config(real: Path, out: Path, **more: Any) -> UtilityConfig:
    values = {
        "dataset": str(real),
        "output_dir": str(out),
        "folds": "fold",
        "codes": ["R2F000", "R2F000P"],
        "architectures": ["unet"],
        "seeds": [0],
        "val_share": 0.4,
        "geometry": {"image_size": 32},
        "num_bootstrap": 100,
        "training": TRAINING,
    }
    return parse_config({**values, **more}, UtilityConfig)


def change_rows(real: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    rows = [json.loads(line) for line in (real / "metadata.jsonl").read_text().splitlines()]
    change(rows)
    save_metadata(real, rows)


def test_each_micrograph_is_tested_once_by_networks_that_never_saw_it(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = build_config(real, out)
    result = utility(config)
    assert result is not None
    cells = read_cells(out)
    assert sorted(cells)[:3] == [f"R2F000-unet-seed0-fold{fold}.json" for fold in "abc"]
    for code in config.codes:
        mine = [cell for cell in cells.values() if cell["code"] == code]
        tested = [stem for cell in mine for stem in cell["test"]["micrographs"]]
        assert sorted(tested) == sorted([f"train{number}" for number in range(6)] + [f"test{n}" for n in range(3)])
        for cell in mine:
            assert {name[-1] in "0369" for name in cell["test"]["micrographs"]} == {cell["fold"] == "a"}
            assert len(cell["real"]) == 2
            assert set(cell["real"]).isdisjoint(cell["test"]["micrographs"])
    for data in load_studies(config).values():
        assert (len(data.train), len(data.val), len(data.test)) == (4, 2, 3)
        assert len({*data.train.stems, *data.val.stems, *data.test.stems}) == 9
    assert result["folds"] == {"a": 3, "b": 3, "c": 3}
    (row,) = result["differences"]
    by_fold = [
        compute_mean_iou(np.sum(cells[f"R2F000P-unet-seed0-fold{fold}.json"]["test"]["confusion"], axis=0))
        - compute_mean_iou(np.sum(cells[f"R2F000-unet-seed0-fold{fold}.json"]["test"]["confusion"], axis=0))
        for fold in "abc"
    ]
    assert row["by_fold"] == pytest.approx(by_fold)
    page = (out / "utility.html").read_text()
    assert "over 3 folds" in page
    assert "tested in one of 3 folds" in page
    assert load_study_result(out)["differences"][0]["by_fold"] == row["by_fold"]


def test_a_stopped_study_resumes_in_the_middle_of_a_fold(real: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    utility(build_config(real, whole))
    run_cell, done = study.run_cell, 0

    class Killed(Exception):
        pass

    def run_some(*arguments: Any) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 4:
            raise Killed
        return run_cell(*arguments)

    monkeypatch.setattr(study, "run_cell", run_some)
    with pytest.raises(Killed):
        utility(build_config(real, cut))
    assert [part.done for part in run_status(cut)][:2] == [2, 1]
    # The folds are known without the dataset.
    moved = real.rename(tmp_path / "moved")
    assert [part.done for part in run_status(cut)][:2] == [2, 1]
    moved.rename(real)
    monkeypatch.setattr(study, "run_cell", run_cell)
    lines: list[str] = []
    utility(build_config(real, cut), lines.append)
    assert len(lines) == 3
    assert read_cells(cut) == read_cells(whole)
    change_rows(real, lambda rows: [row.update(fold="abc"["bca".index(row["fold"])]) for row in rows])
    with pytest.raises(InputError, match="dataset"):
        utility(build_config(real, cut))


def test_each_fold_has_its_own_pairs(real: Path, generated: Path, tmp_path: Path) -> None:
    for number, fold in enumerate("abc"):
        folder = tmp_path / f"pairs-{fold}"
        save_pairs(folder / "samples", folder / "labels", 4 + number, 32, number)
        shutil.copyfile(generated / "sampling.json", folder / "sampling.json")
    pairs = {"generated": str(tmp_path / "pairs-{fold}"), "geometry": {}, "codes": ["R2F000", "R2FALL"]}
    config = build_config(real, tmp_path / "out", **pairs)
    assert [data.num_generated for data in load_studies(config).values()] == [4, 5, 6]
    result = utility(config)
    assert result is not None
    assert not any("same generated pairs" in line for line in result["warnings"])
    assert result["num_generated"] == 4
    assert [answer.question for answer in judge_differences(result["differences"])] == [
        "Do 4 generated pairs help in addition to 2 real micrographs?"
    ]
    shared = utility(build_config(real, tmp_path / "shared", **{**pairs, "generated": str(generated)}))
    assert shared is not None
    assert any("same generated pairs" in line for line in shared["warnings"])
    shutil.rmtree(tmp_path / "pairs-b")
    with pytest.raises(InputError, match="pairs-b: no such folder"):
        utility(build_config(real, tmp_path / "new", **pairs))


def test_each_fold_has_its_own_predicted_masks(real: Path, tmp_path: Path) -> None:
    for fold, names in {"a": ["n"], "b": ["n", "o"], "c": ["p"]}.items():
        folder = tmp_path / f"completed-{fold}" / "train"
        save_pairs(folder / "images", folder / "masks", len(names), 48, 5)
        for number, name in enumerate(names):
            for kind in ("images", "masks"):
                (folder / kind / f"{number:03d}.png").rename(folder / kind / f"{name}.png")
        save_metadata(
            folder.parent, [{"file_name": f"train/images/{name}.png", "labels": "predicted"} for name in names]
        )
        save_dataset_info(folder.parent, INFO)
    rival = {"predicted": str(tmp_path / "completed-{fold}"), "codes": ["RALLF000", "RALLF000L"]}
    config = build_config(real, tmp_path / "out", **rival)
    assert [data.predicted and data.predicted.stems for data in load_studies(config).values()] == [
        ["n"],
        ["n", "o"],
        ["p"],
    ]
    result = utility(config)
    assert result is not None
    assert not any("predicted masks" in line for line in result["warnings"])
    shared = utility(build_config(real, tmp_path / "shared", **{**rival, "predicted": str(tmp_path / "completed-a")}))
    assert shared is not None
    assert any("same predicted masks: a segmenter" in line for line in shared["warnings"])


def test_random_folds_are_even_and_keep_tiles_together(real: Path) -> None:
    config = build_config(real, real / "out", folds=4)
    folds = list_folds(config)
    assert list(folds) == ["1", "2", "3", "4"]
    assert sorted(len(stems) for stems in folds.values()) == [2, 2, 2, 3]
    assert len({stem for stems in folds.values() for stem in stems}) == 9
    assert [cell.fold for cell in list_cells(config)] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    change_rows(real, lambda rows: [row.update(parent=f"steel{index // 2}") for index, row in enumerate(rows)])
    folds = list_folds(build_config(real, real / "out", folds=2))
    members = [{f"train{index}" for index in pair} for pair in ((0, 1), (2, 3), (4, 5))]
    assert all(any(pair <= set(stems) for stems in folds.values()) for pair in members)


@pytest.mark.parametrize(
    ("folds", "change", "message"),
    [
        ("cv", lambda rows: None, r"metadata.jsonl has no 'cv' for train0 \(has: parent, fold\)"),
        ("fold", lambda rows: rows[0].pop("fold"), "metadata.jsonl has no 'fold' for train0"),
        ("fold", lambda rows: rows[0].update(fold="d"), r"fold d has one micrograph \(train0\); at least 2"),
        ("fold", lambda rows: [row.update(fold=1) for row in rows], "all micrographs are in one fold"),
        ("fold", lambda rows: rows[0].update(fold="a/b"), "'a/b' in 'fold' of train0 must have"),
        ("fold", lambda rows: [row.update(parent="x") for row in rows[:2]], "images of x are in the folds a and b"),
        (5, lambda rows: None, "5 folds of at least 2 micrographs need 10, there are 9"),
        (1, lambda rows: None, r"folds"),
        (None, lambda rows: None, r"contains \{fold\}, but folds is null"),
    ],
)
def test_unusable_folds_give_one_line(folds: Any, change: Any, message: str, real: Path, tmp_path: Path) -> None:
    change_rows(real, change)
    generated = {} if folds else {"generated": str(tmp_path / "{fold}")}
    with pytest.raises(InputError, match=message) as caught:
        utility(build_config(real, tmp_path / "out", folds=folds, **generated))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_command(real: Path, tmp_path: Path) -> None:
    from steelgen.cli.app import app

    path, out = tmp_path / "utility.json", tmp_path / "out"
    path.write_text(json.dumps(build_config(real, out, codes=["RALLF000"]).model_dump(mode="json")))
    dry = CliRunner().invoke(app, ["utility", "-c", str(path), "--dry-run"])
    assert "3 cells, 0 done" in dry.output
    done = CliRunner().invoke(app, ["utility", "-c", str(path)])
    assert done.exit_code == 0, done.output
    assert "9 micrographs in 3 folds" in done.output


def draw_folds(rng: np.random.Generator, effect: float) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Confusions of 6 folds of 4 micrographs and 3 seeds; folds, micrographs and networks all vary."""
    folds = np.repeat(np.arange(6), 4)
    fold_effect, micrograph_effect = rng.normal(0, 0.03, 6)[folds], rng.normal(0, 0.02, 24)
    values = {"R4F000": 0.6 + 0 * fold_effect, "R4FALL": 0.6 + effect + fold_effect + micrograph_effect}
    confusions = {
        (code, "a"): np.array(
            [[make_confusion(iou, 10**6) for iou in mean + rng.normal(0, 0.01, 6)[folds]] for _ in range(3)]
        )
        for code, mean in values.items()
    }
    return confusions, folds


def test_intervals_over_folds_are_scipys() -> None:
    confusions, folds = draw_folds(np.random.default_rng(0), 0.02)
    (row,) = summarize(confusions, {"R4F000": (4, 0), "R4FALL": (4, 9)}, 100, folds)["differences"]
    differences = [
        np.mean(
            [
                compute_mean_iou(confusions["R4FALL", "a"][seed, folds == fold].sum(axis=0))
                - compute_mean_iou(confusions["R4F000", "a"][seed, folds == fold].sum(axis=0))
                for seed in range(3)
            ]
        )
        for fold in range(6)
    ]
    assert row["by_fold"] == pytest.approx(differences)
    assert row["difference"] == pytest.approx(np.mean(differences))
    expected = scipy.stats.t.interval(0.95, 5, np.mean(differences), scipy.stats.sem(differences))
    assert row["interval"] == pytest.approx(expected)


def test_the_share_of_the_gap_closed_by_hand() -> None:
    rng = np.random.default_rng(4)
    few, gain, gap = rng.uniform(0.4, 0.5, 6), rng.uniform(0.02, 0.06, 6), rng.uniform(0.08, 0.12, 6)
    by_fold = {"R2F000": few, "R2F000P": few - 0.01, "R2FALL": few + gain, "RALLF000": few + gap, "RALLFALL": few + 0.2}
    counts = {"R2F000": (2, 0), "R2F000P": (2, 0), "R2FALL": (2, 9), "RALLF000": (20, 0), "RALLFALL": (20, 9)}
    confusions = {
        (code, "a"): np.array([[make_confusion(iou, 10**7) for iou in values]]) for code, values in by_fold.items()
    }
    gaps = summarize(confusions, counts, 2000, np.arange(6))["gaps"]
    # Codes with all micrographs have no gap to close.
    assert [(row["code"], row["full"], row["architecture"]) for row in gaps] == [
        ("R2F000P", "RALLF000", "a"),
        ("R2FALL", "RALLF000", "a"),
    ]
    assert [row["gap"] for row in gaps] == pytest.approx([gap.mean()] * 2, abs=1e-6)
    assert [row["closed"] for row in gaps] == pytest.approx([-0.01 / gap.mean(), gain.mean() / gap.mean()], abs=1e-4)
    expected = scipy.stats.bootstrap(
        (gain, gap),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20000,
        rng=1,
    )
    assert gaps[1]["interval"] == pytest.approx(expected.confidence_interval, abs=0.01)
    # Without folds there is no interval, and without a gap nothing to close.
    assert summarize(confusions, counts, 100)["gaps"][1]["interval"] is None
    confusions["RALLF000", "a"] = np.array([[make_confusion(iou - 0.1, 10**7) for iou in few]])
    assert summarize(confusions, counts, 100, np.arange(6))["gaps"][1]["closed"] is None


def test_bootstrap_over_folds_alone_is_scipys() -> None:
    rng = np.random.default_rng(2)
    # With one seed and folds of one micrograph, only folds are resampled.
    treated, control = (
        np.array([[[make_confusion(v, 10**6) for v in rng.normal(mean, 0.05, 9)]]]) for mean in (0.6, 0.5)
    )
    differences = (compute_mean_iou(treated) - compute_mean_iou(control)).ravel()
    draws = bootstrap_differences(treated, control, 20000, folds=np.arange(9))[:, 0]
    expected = scipy.stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=20000, rng=1)
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx(expected.confidence_interval, abs=1.5e-3)


def test_helps_is_said_by_chance_in_one_study_of_forty() -> None:
    rng = np.random.default_rng(3)
    standings = []
    for _ in range(150):
        confusions, folds = draw_folds(rng, 0.0)
        found = summarize(confusions, {"R4F000": (4, 0), "R4FALL": (4, 9)}, 100, folds)
        standings.append(judge_differences(found["differences"])[0].standing)
    wrong = np.mean([standing != "fair" for standing in standings])
    print(f"\noracle no effect: the interval over 6 folds excludes 0 in {wrong:.3f} of 150 studies (0.05 expected)")
    # 0.05 ± 2.6 standard deviations of a share of 150.
    assert wrong < 0.097

"""benchmarks/run lists every program, survives a failing one and writes RESULTS.md; benchmarks/gpu."""

import csv
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steelgen.config.utility import parse_code
from steelgen.data.crops import load_micrographs
from steelgen.evaluation.utility.training_set import choose_subset
from steelgen.files import save_json

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STORED = sorted((BENCHMARKS / "results").glob("*.json"))
ENVIRONMENT = {
    "steelgen": "1",
    "python": "3",
    "packages": {"torch": "2", "diffusers": "0"},
    "platform": "Linux",
    "processor": "x86_64",
    "threads": 1,
    "gpus": [],
    "command": ["python", "x.py"],
}


def run(*arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(BENCHMARKS / "run"), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout


def gather(results, folder):
    report = folder / "RESULTS.md"
    run("--gather", "--results", results, "--report", report)
    return report.read_text(encoding="utf-8")


def store(folder, name, values):
    (folder / f"{name}.json").write_text(json.dumps({"environment": ENVIRONMENT, **values}))


def load_program(path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(path), run_name="imported")


def test_list_names_every_program_and_variant(monkeypatch):
    listed = run("--list")
    programs = {path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()} - {"programs.py"}
    assert len(programs) >= 7
    assert {name for name in programs if f"benchmarks/{name}" not in listed} == set()
    variants = set(load_program(BENCHMARKS / "recipe.py", monkeypatch)["VARIANTS"])
    assert set(re.findall(r"recipe.py run --variant (\S+)", listed)) == variants
    studies = set(load_program(BENCHMARKS / "utility.py", monkeypatch)["STUDIES"])
    assert set(re.findall(r"--study (\S+)", listed)) == studies


PROGRAMS = [*sorted(BENCHMARKS.glob("*.py")), BENCHMARKS.parent / "scripts" / "bundle"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_imports(path, monkeypatch):
    assert load_program(path, monkeypatch)["__doc__"]


def test_committed_report_follows_from_committed_results(tmp_path):
    assert gather(BENCHMARKS / "results", tmp_path) == (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_missing_result_leaves_its_section_out(path, tmp_path):
    whole = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    results = shutil.copytree(path.parent, tmp_path / "results")
    (results / path.name).unlink()
    report = gather(results, tmp_path)
    assert report.count("\n## ") == whole.count("\n## ") - (path.stem != "gpu")  # always has a section
    assert path.stem in report.splitlines()[-1]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_contain_no_absolute_paths(path):
    assert re.findall(r'[" =]/\w[^"]*', path.read_text()) == []


def test_recipe_has_mean_and_range_over_seeds(tmp_path):
    floor = {"kid": 0.005, "kid_std": 0.001, "fd": 40.0}
    runs = [
        {
            "variant": "default",
            "budget_seconds": 300,
            "seed": seed,
            "floor": floor,
            "scores": {"at 1": {"step": 900, "kid": kid, "kid_std": 0.002, "fd": 60.0 + seed}},
        }
        for seed, kid in enumerate((0.015, 0.025))
    ]
    seconds = {"default": {"median": 0.331, "min": 0.324, "max": 0.34}}
    store(tmp_path, "recipe", {"seconds_a_step": seconds, "runs": runs})
    lines = gather(tmp_path, tmp_path).splitlines()
    scored = "| default | 300 | at 1 | 900 | 2 | 15.0 (10.0 to 20.0) | 20.0 (15.0 to 25.0) | 60.5 (60.0 to 61.0) |"
    assert scored in lines
    assert "| default | 0.331 (0.324 to 0.340) |" in lines
    assert "`python x.py` · x86_64, 1 thread, no GPU, Linux · steelgen 1, torch 2, diffusers 0, Python 3" in lines


def test_translation_has_filters_beside_means_over_seeds(tmp_path):
    def score(power):
        shares = {"scan_line_power": power, "spectrum": 0.1, "iou_share": 0.95, "area_shift": 0.01}
        return {"kid": 0.02, "gray_kl": 0.004, **shares}

    shared = {"system": "cut", "data": "world", "steps": 900, "beside": {"source": score(0.03)}}
    scores = [{**shared, "seed": seed, "score": score(power)} for seed, power in enumerate((0.8, 1.0))]
    iou = {"true pairs": [0.9, 0.7], "translated": [0.8, 0.6]}
    seen = {"translated": [0.7, 0.5]}
    segmenters = [{"system": "cut", "data": "world", "seed": 0, "steps": 900, "iou": iou, "labels_seen": seen}]
    store(tmp_path, "translation", {"scores": scores, "segmenters": segmenters})
    lines = gather(tmp_path, tmp_path).splitlines()
    row = "0.020 (0.020 to 0.020) | 0.004 (0.004 to 0.004) | 0.900 (0.800 to 1.000) | 0.100 (0.100 to 0.100)"
    assert f"| world | 900 | cut | {row} | 0.950 (0.950 to 0.950) | 0.010 (0.010 to 0.010) | 2 |" in lines
    assert "| world | 900 | source | 0.020 | 0.004 | 0.030 | 0.100 | 0.950 | 0.010 | 1 |" in lines
    assert "| world | cut | translated | 0.700 | 0.600 | 1 |" in lines
    assert "| world | cut | true pairs | 0.800 | – | 1 |" in lines


def test_families_have_the_best_figure_in_bold(tmp_path):
    families = [{"name": name, "steps": 900, "parameters": 1234567} for name in ("gan", "joint")]
    figures = {"gan": {"value": 0.0423, "interval": [0.03, 0.05]}, "joint": {"value": 0.1, "interval": None}}
    kid = {"metric": "KID", "better": "lower", "floor": 0.01, "figures": figures, "best": ["gan"]}
    miou = {"metric": "mIoU", "better": "higher", "floor": None, "figures": {**figures, "gan": None}, "best": []}
    stored = {"image_size": 32, "minutes": 3.0, "num_samples": 64, "families": families, "figures": [kid, miou]}
    store(tmp_path, "families", stored)
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| generator | 10⁶ parameters | steps | KID (lower) | mIoU (higher) |" in lines
    assert "| gan | 1.23 | 900 | **0.0423 [0.03, 0.05]** | – |" in lines
    assert "| joint | 1.23 | 900 | 0.1 | 0.1 |" in lines
    assert "| floor | – | – | 0.01 | – |" in lines


def test_utility_shows_differences_with_intervals(tmp_path):
    difference = {
        "code": "RALLFALL",
        "baseline": "RALLF000",
        "architecture": "unet",
        "difference": 0.0123,
        "interval": [-0.002, 0.03],
        "by_seed": [0.01, 0.015],
    }
    score = {"code": "RALLF000", "architecture": "unet", "mean_iou": 0.5, "by_seed": [0.49, 0.51]}
    variant = {"study": "pretrain", **difference, "difference": 0.02, "by_seed": [0.01, 0.03]}
    store(tmp_path, "utility", {"differences": [difference], "scores": [score], "variants": [variant]})
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| RALLFALL − RALLF000 | unet | +0.012 | -0.002 to +0.030 | +0.010, +0.015 |" in lines
    assert "| RALLF000 | unet | 0.500 | 0.490, 0.510 |" in lines
    assert "| pretrain | RALLFALL − RALLF000 | unet | +0.020 | -0.002 to +0.030 | +0.010, +0.030 |" in lines


def test_folds_show_the_share_of_the_gap(tmp_path):
    score = {"code": "R4FALL", "num_generated": 9, "class_iou": [0.9, 0.5], "mean_iou": 0.7, "interval": [0.6, 0.8]}
    pair = {"code": "R4FALL", "baseline": "R4F000"}
    difference = {**pair, "difference": 0.02, "interval": [0.01, 0.03], "by_fold": [0.015, 0.025]}
    other = {**difference, "baseline": "R4F000P"}
    by_class = {"class_iou": [0.01, 0.03], "boundary_f1": 0.004}
    stored = {
        "folds": [0, 1],
        "seeds": [0],
        "class_names": ["matrix", "film"],
        "scores": [score],
        "differences": [difference, other],
        "gaps": [{**pair, "closed": 0.513, "interval": [0.22, 0.86]}],
        "by_class": [{**pair, **by_class}, {**pair, "baseline": "R4F000P", **by_class}],
    }
    store(tmp_path, "folds", stored)
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| R4FALL | 9 | 0.900 | 0.500 | 0.700 | 0.600 to 0.800 |" in lines
    row = "| R4FALL − R4F000{} | +0.020 | +0.010 to +0.030 | +0.015, +0.025 | +0.010 | +0.030 | +0.004 | {} |"
    assert row.format("", "51 % | 22 to 86 %") in lines
    assert row.format("P", "– | –") in lines


def test_fold_studies_leave_out_what_lacks_folds(tmp_path, monkeypatch):
    gather_folds = load_program(BENCHMARKS / "folds.py", monkeypatch)["gather"]

    def store_cell(fold: int, count: str, code: str, correct: int, study: str = "study") -> None:
        matrix = np.diag([correct] * 4) + np.array([[0, 100 - correct, 0, 0]] + [[0] * 4] * 3)
        test = {"confusion": [matrix.tolist()], "boundaries": [[[1] * 4] * 4]}
        real, generated = ["a"] * (16 if count == "all" else int(count)), 0 if code.endswith("F000") else 8
        cell = {"code": code, "seed": 0, "real": real, "num_generated": generated, "test": test}
        save_json(tmp_path / f"fold{fold}-{count}-seed0" / study / "cells" / f"{code}.json", cell)

    for fold in range(2):
        for count, code, correct in (("4", "RALLF000", 40), ("4", "RALLFALL", 60), ("all", "RALLF000", 80)):
            store_cell(fold, count, code, correct)
        store_cell(fold, "4", "RALLFALL", 70, "study-half-unlabeled")
    store_cell(0, "1", "RALLF000", 20)
    found = gather_folds(tmp_path)
    assert [row["code"] for row in found["scores"]] == ["R4F000", "R4FALL", "R4FALL half unlabeled", "RALLF000"]
    gains = {(row["code"], row["baseline"]): row["difference"] for row in found["differences"]}
    assert 0 < gains["R4FALL", "R4F000"] < gains["R4FALL half unlabeled", "R4F000"]
    assert found["folds"] == [0, 1]
    assert 0 < found["gaps"][0]["closed"] < 1


def test_steering_shows_differences_and_sets(tmp_path):
    difference = {
        "arm": "emphasis",
        "code": "R25%FALL",
        "baseline": "plain",
        "architecture": "segformer",
        "difference": -0.0123,
        "interval": [-0.03, 0.002],
        "by_seed": [-0.01, -0.015],
    }
    stored = {
        "differences": [difference],
        "sets": {"weighed": {"class_share": {"matrix": 0.75, "film": 0.25}, "dropped": 31}},
        "sampling_seconds": {"weighed": 120.4},
        "emphasis": {"error": {"matrix": 0.2, "film": 0.9}},
    }
    store(tmp_path, "steering", stored)
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| emphasis | R25%FALL − plain | segformer | -0.012 | -0.030 to +0.002 | -0.010, -0.015 |" in lines
    assert "| weighed | 0.750 | 0.250 | 31 | 120 |" in lines
    assert "| error | 0.200 | 0.900 |" in lines


def test_segmentation_shows_folds_and_judges(tmp_path):
    score = {"class_iou": [0.9, 0.5], "mean_iou": 0.7}
    fold = {"name": "fold3-seed0-15min", "fold": 3, "steps": 900, **score}
    other = {**fold, "name": "fold4-seed0-15min", "fold": 4, "class_iou": [0.8, 0.4], "mean_iou": 0.6}
    longer = {**fold, "name": "fold3-seed0-5000steps", "steps": 5000}
    judge = {"name": "small-seed0-20s", "seconds": 20.0, **score}
    stored = {"class_names": ["matrix", "film"], "folds": [fold, other, longer], "times": [judge], "scales": []}
    store(tmp_path, "segmentation", stored)
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| 3 | 15min | 0.900 | 0.500 | 0.700 | 900 |" in lines
    assert "| mean | 15min | 0.850 | 0.450 | 0.650 |  |" in lines
    assert "| mean | 5000steps | 0.900 | 0.500 | 0.700 |  |" in lines
    assert "| small | 20 | 0.900 | 0.500 | 0.700 |" in lines


def test_transfer_counts_the_steps_to_what_training_from_scratch_reaches(tmp_path):
    def run(start, losses, kids):
        curves = {"val_loss": losses, "kid": kids, "kid_floor": [[40, 0.01]], "copies": [[40, 0.0625]]}
        return {"dataset": "d", "start": start, "training_micrographs": 4, "seed": 0, "steps": 40, **curves}

    scratch = run("scratch", [[10, 0.8], [40, 0.5]], [[40, 0.25]])
    base = run("base", [[10, 0.6], [20, 0.45], [40, 0.4]], [[20, 0.31], [40, 0.06]])
    other = {**run("base", [[40, 0.3]], [[40, 0.04]]), "seed": 1}
    store(tmp_path, "transfer", {"runs": [scratch, base]})
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| d | scratch | 4 | 0.500 | 40 | 240.0 | 40 | 6 % | 1 |" in lines
    # On straight lines between the measurements: 10 + 10·0.1/0.15 and 20 + 20·0.06/0.25.
    assert "| d | base | 4 | 0.400 | 17 | 50.0 | 25 | 6 % | 1 |" in lines
    store(tmp_path, "transfer", {"runs": [scratch, base, other]})  # seed 1 was not trained from scratch
    reached = "17 in 1 of 2 | 40.0 (30.0 to 50.0) | 25 in 1 of 2"
    row = f"| d | base | 4 | 0.350 (0.300 to 0.400) | {reached} | 6 (6 to 6) % | 2 |"
    assert row in gather(tmp_path, tmp_path).splitlines()


def test_planning_shows_kid_above_the_floor_at_both_scales(tmp_path):
    floor = {"kid_layout": 0.01, "recall_layout": 0.75, "kid_detail": 0.02, "recall_detail": 0.5}
    stage = {"crop_size": 96, "image_size": 64, "start": "bundled:base", "steps": 7}

    def run(variant, seed, layout, detail):
        score = {"kid_layout": layout, "recall_layout": 0.25, "kid_detail": detail, "recall_detail": 0.125}
        return {**named(variant, seed), "stages": [stage, {**stage, "start": None}], "floor": floor, "score": score}

    def named(variant, seed):
        return {"dataset": "d", "variant": variant, "seed": seed, "minutes": 3.0}

    runs = [run("plan", 0, 0.03, 0.06), run("plan", 1, 0.05, 0.06), {**named("native", 0), "equal": "one-stage"}]
    store(tmp_path, "planning", {"runs": runs})
    lines = gather(tmp_path, tmp_path).splitlines()
    crops = "96 px at 64 px from bundled:base, 7 steps + 96 px at 64 px from scratch, 7 steps"
    scores = "30.0 (20.0 to 40.0) | 0.25 of 0.75 | 40.0 (40.0 to 40.0) | 0.12 of 0.50"
    assert f"| d | plan | {crops} | {scores} | 3 | 2 |" in lines
    assert "| d | native | as one-stage | – | – | – | – | – | – |" in lines


def test_a_plan_is_compared_with_other_crops_for_as_many_steps(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from planning import build_stages

    data, training = {"dataset": "d", "image_size": 64, "crop_size": 128}, {"max_steps": 5, "learning_rate": 1e-4}
    first = {"checkpoint": "bundled:base", "data": data, "train": training}
    second = {"checkpoint": "bundled:base/refine", "data": {**data, "crop_size": 64}, "train": training}
    planned = {"stages": {"finetune": first, "refine": second}, "seconds": 1.0, "crop_size": 96, "smallest_edge": 180}
    assert build_stages("plan", planned, 1.0) == [first, second]
    for variant, crop in (("one-stage", 96), ("one-stage-scratch", 96), ("native", 64), ("coarse", 176)):
        (stage,) = build_stages(variant, planned, 1.0) or ()
        assert stage["data"]["crop_size"] == crop
        assert stage["train"]["max_steps"] == 54  # a minute of steps of a second, less a tenth
        anew = variant.endswith("scratch")
        assert ("generator" in stage, "checkpoint" in stage) == (anew, not anew)
        assert stage["train"]["learning_rate"] == (1e-3 if anew else 1e-4)
    assert build_stages("native", {**planned, "crop_size": 64}, 1.0) is None


def test_ways_without_labels_have_means_over_seeds(tmp_path):
    def run(seed, kid):
        score = {"kid": kid, "labels_seen": [0.5, 0.25], "iou": [0.25, 0.0]}
        return {"way": "labeled", "steps": 9, "seed": seed, "score": score}

    store(tmp_path, "unlabeled", {"runs": [run(0, 0.02), run(1, 0.04)]})
    row = "| labeled | 9 | 0.030 (0.020 to 0.040) | 0.375 (0.375 to 0.375) | 0.125 (0.125 to 0.125) | 2 |"
    assert row in gather(tmp_path, tmp_path).splitlines()


def test_adapter_has_the_floor_and_the_autoencoder_beside_means_over_seeds(tmp_path):
    def score(kid, iou):
        return {"kid": kid, "kid_std": 0.001, "precision": 0.5, "recall": 0.25, "mask_iou": iou, "copies": 0.0625}

    codec = {**score(0.02, 0.6), "psnr_db": 27.04, "kept_detail": 0.5}
    shared = {"system": "control", "fraction": 0.1, "minutes": 4, "images": 64}
    runs = [{**shared, "seed": seed, "score": score(0.04 + 0.01 * seed, 0.5 + 0.1 * seed)} for seed in range(2)]
    minutes = {"autoencoder": 8, "base": 15}
    shared |= {"pairs": 128, "mean_iou": {"real": 0.25, "with pairs": 0.28}}
    gains = [{**shared, "seed": 0}, {**shared, "seed": 1, "mean_iou": {"real": 0.35, "with pairs": 0.34}}]
    made = {"autoencoder": {"floor": {**score(0.01, 0.7), "chance": 0.3}, "score": codec}, "minutes": minutes}
    store(tmp_path, "adapter", {"runs": runs, "utility": gains, **made})
    lines = gather(tmp_path, tmp_path).splitlines()
    row = "35.0 (30.0 to 40.0) | 0.50, 0.25 | 0.550 (0.500 to 0.600) | 6 % | 2 |"
    assert f"| control | 10 % | 4 | {row}" in lines
    assert "| autoencoder | – | – | 10.0 | 0.50, 0.25 | 0.600 | 6 % | 1 |" in lines
    assert "| floor | – | – | 0.0 | 0.50, 0.25 | 0.700 | 6 % | 1 |" in lines
    row = "0.300 (0.250 to 0.350) | 0.310 (0.280 to 0.340) | 0.010 (-0.010 to 0.030) | 2 |"
    assert f"| control | 10 % | 4 | {row}" in lines


def test_pairs_have_differences_over_common_seeds(tmp_path, monkeypatch):
    pairs = load_program(BENCHMARKS / "pairs.py", monkeypatch)
    names = ("precision", "recall", "image_copies", "mask_copies", *pairs["MASK_FIGURES"])
    floor = {"kid": 0.01, "mean_iou": 0.5} | dict.fromkeys(names, 0.25)

    def run(system, seed, kid):
        score = {**floor, "kid": kid, "mean_iou": 0.4}
        shared = {"minutes": 3, "images": 128, "steps": {"a": 200, "b": 300}, "seconds_a_pair": 0.5}
        studies = {
            "alone": {"R4F000": 0.4, "RALLF000": 0.5},
            "with_pairs": {"R4FALL": 0.42 + 0.01 * seed, "RALLFALL": 0.49},
        }
        found = {"system": system, "seed": seed, "score": score, **shared, **studies}
        return {**found, "figures": pairs["flatten"](found, floor)}

    runs = [run("masks-first", seed, kid) for seed, kid in enumerate((0.04, 0.06, 0.5))]
    runs += [run("joint", seed, kid) for seed, kid in enumerate((0.07, 0.1))]
    runs.append({**run("joint", 2, 0.1), "minutes": 9})  # another time
    differences = pairs["compare_systems"](runs)
    assert {(row["first"], row["second"]) for row in differences} == {("masks-first", "joint")}
    (kid,) = [row for row in differences if row["figure"] == "kid"]
    assert kid["by_seed"] == pytest.approx([-0.03, -0.04])  # the third seed has no partner of equal time
    # Two values: half of their difference is the standard error, and t is 12.706 with one degree of freedom.
    assert kid["interval"] == pytest.approx([-0.035 - 12.706 * 0.005, -0.035 + 12.706 * 0.005], abs=1e-5)
    (gain,) = [row for row in differences if row["figure"] == "R4FALL"]
    assert gain["difference"] == pytest.approx(0)

    procedural = {name: 0.125 for name in ("mask_copies", *pairs["MASK_FIGURES"])}
    networks = {"joint": {"parameters": 1_020_000, "median": 0.21}}
    references = {"floor": floor, "procedural": procedural, "found": {"image_copies": 1.0, "mask_copies": 0.75}}
    store(tmp_path, "pairs", {"networks": networks, **references, "runs": runs, "differences": differences})
    lines = gather(tmp_path, tmp_path).splitlines()
    row = "75.0 (60.0 to 90.0) | 0.25 (0.25 to 0.25) | 0.25 (0.25 to 0.25) | 0.80 (0.80 to 0.80) | 0.25 (0.25 to 0.25)"
    assert f"| joint | 3 | 200 + 300 | {row} | 0.50 | 2 |" in lines
    assert "| procedural | – | 0.125 | 0.125 | 0.125 | 0.125 | 0.125 | 0.125 |" in lines
    assert any("finds 100% of images and 75% of masks" in line for line in lines)
    assert "| masks-first | 3 | 0.030 (0.020 to 0.040) | -0.010 (-0.010 to -0.010) |" in lines
    assert "| KID·10³ above the floor | -35.0 [-98.5, +28.5] |" in lines


def test_structure_of_masks_is_compared_class_by_class(monkeypatch):
    compare_masks = load_program(BENCHMARKS / "pairs.py", monkeypatch)["compare_masks"]
    real = np.zeros((2, 32, 32), np.uint8)
    real[:, 4:12, 4:12] = 1
    real[0, 16:28, 16:28] = 2
    real[:, 31, 31] = 3  # too rare to count
    assert set(compare_masks(np.where(real == 3, 0, real), real, 4).values()) == {0.0}
    wider = real.copy()
    wider[:, 4:12, 4:20] = 1
    found = compare_masks(wider, real, 4)
    # The first class has twice the area in as many islands, the second one is the same.
    assert found["fraction"] == pytest.approx(64 / 1024 / 2)
    assert (found["island_area"], found["island_count"]) == (0.5, 0)
    found = compare_masks(np.where(real == 2, 0, real), real, 4)
    assert found == pytest.approx(dict.fromkeys(found, 0.5) | {"fraction": 72 / 1024 / 2})


def test_adapters_learn_from_the_micrographs_that_segmenters_see(tmp_path, monkeypatch):
    adapter = load_program(BENCHMARKS / "adapter.py", monkeypatch)
    stems = load_micrographs(adapter["UHCS"], "train").stems
    for seed in (0, 1):
        smaller: set[str] = set()
        for fraction, text in ((0.1, "R10%F000"), (0.25, "R25%F000"), (1.0, "R100%F000")):
            taken = set(load_micrographs(adapter["take_micrographs"](fraction, seed, tmp_path), "train").stems)
            count = parse_code(text).count_real(len(stems))
            assert taken == {stems[index] for index in choose_subset(len(stems), count, seed)}
            assert smaller < taken
            smaller = taken


def test_conditions_show_kid_within_and_between_values(tmp_path):
    row = {"training": 3, "held_out": 2, "generated_to_training": [0.0, 0.0, None]}
    kids = [[0.01, 0.05, None], [0.04, 0.02, None], [0.03, 0.05, None]]
    rows = [
        {**row, "value": value, "real": real, "generated": generated, "read": read}
        for value, real, generated, read in zip(
            (0.1, 0.5, 2.0), [kids[0], kids[1], None], kids, (0.12, 0.4, 1.5), strict=True
        )
    ]
    reader = {"cross_validated": 0.5, "held_out": 0.75, "generated": 0.7, "open": -0.01}
    found = {"rows": rows, "open": [0.06, 0.07, None], "reader": reader, "is_number": True}
    run = {"dataset": "uhcs", "steps": 300, "batch_size": 32, "start": "scratch", "images": 64}
    store(tmp_path, "conditions", {"runs": [{**run, "conditions": {"pixel_size_um": found}}]})
    lines = gather(tmp_path, tmp_path).splitlines()
    assert "| 0.1 | 3 | 2 | 10 | 50 | 10 | 50 | 60 | yes | 0.12 |" in lines
    assert "| 0.5 | 3 | 2 | 20 | 40 | 20 | 40 | 70 | yes | 0.4 |" in lines
    assert "| 2 | 3 | 2 | – | – | – | 40 | – | – | 1.5 |" in lines
    (scores,) = (line for line in lines if line.startswith("uhcs, `pixel_size_um`"))
    assert scores.endswith("left out 0.50, real held-out crops 0.75, generated 0.70, left open -0.01.")


def test_conditions_hold_out_whole_specimens(monkeypatch):
    program = load_program(BENCHMARKS / "conditions.py", monkeypatch)
    with open(program["UHCS_TABLE"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    specimens = {split: {row["specimen"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert specimens["train"] & specimens["val"] == {""}
    asked = program["SETTINGS"]["uhcs"].values
    assert {row["constituent"] for row in rows} == set(asked["constituent"])
    for row in rows:
        size = float(row["bar_um"]) / float(row["bar_px"])
        nearest = asked["pixel_size_um"][program["find_nearest"](size, asked["pixel_size_um"])]
        assert 0.7 < size / nearest < 1.4


def test_ridge_equals_the_normal_equations(monkeypatch):
    program = load_program(BENCHMARKS / "conditions.py", monkeypatch)
    rng = np.random.default_rng(0)
    known, features, targets = rng.normal(size=(40, 6)), rng.normal(size=(5, 6)), rng.normal(size=(40, 2))
    weights, strength = rng.uniform(0.5, 2, 40), 0.3
    x, others = ((each - known.mean(0)) / known.std(0) / 6**0.5 for each in (known, features))
    center = (weights[:, None] * targets).sum(0) / weights.sum()
    weighted = x * weights[:, None]
    expected = others @ np.linalg.inv(x.T @ weighted + strength * np.eye(6)) @ weighted.T @ (targets - center) + center
    assert program["predict"](known, targets, weights, strength, features) == pytest.approx(expected)


def test_results_without_a_section_are_named(tmp_path):
    store(tmp_path, "novel", {})
    assert "novel.json: not in the report" in run(
        "--gather", "--results", tmp_path, "--report", tmp_path / "RESULTS.md"
    )


def test_a_failing_program_is_named_and_the_others_run(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    programs = importlib.import_module("programs")
    done = tmp_path / "done"
    chosen = [
        programs.Benchmark("broken", ["-c 'raise SystemExit(3)'"]),
        programs.Benchmark("sound", [f'-c \'import os; open("{done}", "w").write(os.environ["OMP_NUM_THREADS"])\''], 1),
    ]
    monkeypatch.setattr(programs, "BENCHMARKS", chosen)
    monkeypatch.setattr(sys, "argv", ["run", "--results", str(tmp_path), "--report", str(tmp_path / "RESULTS.md")])
    assert programs.main() == 1
    assert done.read_text() == "1"
    assert "failed: python -c 'raise SystemExit(3)' (exit code 3)" in capfd.readouterr().err
    assert (tmp_path / "RESULTS.md").is_file()


def test_sampling_trains_its_generator_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    programs = importlib.import_module("programs")
    commands = []
    monkeypatch.setattr(programs, "_run", lambda command, threads: commands.append(command) or [])
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    sampling = [benchmark for benchmark in programs.BENCHMARKS if benchmark.name == "sampling-speed"]
    programs.run_benchmarks(sampling)
    assert commands == [programs.TRAIN_GENERATOR, *sampling[0].commands]
    (tmp_path / programs.GENERATOR / "export").mkdir(parents=True)
    programs.run_benchmarks(sampling)
    assert commands[2:] == list(sampling[0].commands)


def run_on_gpu(*arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(BENCHMARKS / "gpu"), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)


def test_every_part_of_the_gpu_benchmark_runs_dry(tmp_path):
    """On the CPU; then one part is stopped early and keeps the results of the others."""
    out = tmp_path / "gpu.json"
    done = run_on_gpu("--dry", "--out", out)
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert {"steps", "resume", "training", "sampling", "memory", "processes"} == set(parts)
    assert [name for name, part in parts.items() if "failed" in part or "cut_after_seconds" in part] == []
    resume = parts["resume"]["measured"]
    assert [row["resumed"]["differing"] for row in resume] == [0] * len(resume)
    assert resume[0]["resumed"]["tensors"] > 100
    steps = parts["steps"]["measured"]
    assert {(row["channels_last"], row["compile"]) for row in steps} == {(1, False), (0, False), (1, "cudagraphs")}
    assert min(row["steps_per_second"]["min"] for row in [*steps, *parts["training"]["measured"]]) > 0
    assert min(row["images_per_second"]["min"] for row in parts["sampling"]["measured"]) > 0
    assert parts["memory"]["measured"]["planned_gib"] > parts["memory"]["measured"]["weights_gib"] > 0
    assert parts["processes"]["measured"]["images_per_second"] > 0

    assert run_on_gpu("--dry", "--out", out, "--only", "sampling", "--minutes", "0.1").returncode == 0
    cut = json.loads(out.read_text())["parts"]
    assert "cut_after_seconds" in cut.pop("sampling")
    assert cut == {name: part for name, part in parts.items() if name != "sampling"}
    report = gather(tmp_path, tmp_path)
    assert "## On a GPU\n" in report
    assert "The part “sampling” was stopped after" in report
    assert report.count("| fp32 (TF32) | ") >= len(resume) + len(steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_benchmark_needs_a_gpu_or_a_dry_run():
    done = run_on_gpu()
    assert done.returncode == 2
    assert done.stderr == "no GPU found; use --dry to run every part on the CPU\n"


def test_families_that_fail_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu, tables = importlib.import_module("gpu"), importlib.import_module("tables.gpu")
    assert all((BENCHMARKS.parent / "configs" / f"{name}.json").is_file() for name in gpu.FAMILIES)
    monkeypatch.setattr(gpu, "FAMILIES", ("rvae", "autoencoder"))
    train = gpu.train

    def fail(config, *arguments):
        if config.generator.kind == "autoencoder":
            raise RuntimeError("no kernel")
        return train(config, *arguments)

    monkeypatch.setattr(gpu, "train", fail)
    saved = []
    gpu.measure_families(replace(gpu.FULL, warm_up=1), tmp_path, saved.append)
    assert [row.get("failed") for row in saved[-1]] == [None, "RuntimeError: no kernel"]
    table = tables._tabulate_gpu_families(saved[-1])
    assert any("| configs/rvae.json | trained |" in line for line in table)
    assert any("| configs/autoencoder.json | RuntimeError: no kernel |" in line for line in table)


def test_waits_are_counted_by_line(monkeypatch):
    """torch's sync debug mode warns at each wait; other warnings do not count."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with gpu.count_waits() as waits:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    assert list(waits.values()) == [3]
    assert next(iter(waits)).startswith("test_benchmarks.py:")

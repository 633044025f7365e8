"""The utility study from config to page: pairing, resuming, shards, errors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from steelgen.config.base import parse_config
from steelgen.config.utility import UtilityConfig, parse_code
from steelgen.data.folder import save_dataset_info, save_metadata
from steelgen.errors import InputError
from steelgen.evaluation import study
from steelgen.evaluation.study import hash_study, utility
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.data import load_studies, load_study
from steelgen.evaluation.utility.statistics import summarize
from steelgen.evaluation.utility.study_page import build_utility_section
from steelgen.evaluation.utility.training import run_cell, train_network
from steelgen.evaluation.utility.training_set import TrainingSet, choose_subset
from steelgen.models.architectures import find_pretrained_part
from steelgen.shards import Shard
from tests.evaluation.conftest import INFO, save_pairs

OFF = ("rare_share", "brightness", "contrast", "gamma", "noise", "blur", "cutmix_share")
TRAINING = {"steps": 4, "batch_size": 4, "base_channels": 8, "validate_every": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "discs"
    save_dataset_info(root.parent, INFO)
    for seed, (split, count) in enumerate({"train": 8, "val": 1, "test": 2}.items()):
        save_pairs(root / split / "images", root / split / "masks", count, 48, seed)
    save_dataset_info(root, INFO)
    return root


def build_config(real: Path, pairs: Path | None, out: Path, **more: Any) -> UtilityConfig:
    values = {
        "dataset": str(real),
        "generated": pairs and str(pairs),
        "output_dir": str(out),
        "codes": ["RALLF000", "RALLFALL"],
        "architectures": ["unet"],
        "seeds": [0, 1],
        "geometry": {"image_size": 32},
        "num_bootstrap": 100,
    }
    training = {**TRAINING, **more.pop("training", {})}
    return parse_config({**values, "training": training, **more}, UtilityConfig)


def read_cells(out: Path) -> dict[str, dict[str, Any]]:
    """All cells without their times."""
    cells = {path.name: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    return {name: {key: value for key, value in cell.items() if key != "seconds"} for name, cell in cells.items()}


@pytest.mark.parametrize(
    ("text", "real_count", "generated_count"),
    [
        ("RALLF000", 16, 0),
        ("R000FALL", 0, 30),
        ("RALLF20", 16, 20),
        ("R10F10", 10, 10),
        ("R25%FALL", 4, 30),
        ("R5%F0", 1, 0),
        ("R1%F0", 1, 0),
        ("R12.5%F0", 2, 0),
    ],
)
def test_codes_count(text: str, real_count: int, generated_count: int) -> None:
    code = parse_code(text)
    assert (code.count_real(16), code.count_generated(30)) == (real_count, generated_count)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RALL",
        "FALL",
        "R-1F0",
        "RALLFALLX",
        "R10F5%",
        "rallf000",
        "R000F000",
        "R0%F0",
        "R000FALLP",
        "R4PF0",
        "R4F0L",
        "RALLF0LP",
    ],
)
def test_invalid_codes_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_code(text)


def test_subsets_are_nested_and_depend_on_the_seed_alone() -> None:
    for seed in range(5):
        sets = [set(choose_subset(40, count, seed)) for count in (1, 4, 10, 40)]
        assert sets[0] < sets[1] < sets[2] < sets[3] == set(range(40))
        assert choose_subset(40, 10, seed) == sorted(sets[2])
    assert choose_subset(40, 10, 0) != choose_subset(40, 10, 1)


def test_cells_of_a_seed_share_micrographs_and_real_crops(real: Path, generated: Path, tmp_path: Path) -> None:
    config = build_config(real, generated, tmp_path / "out", codes=["R4F000", "R4FALL", "R2F000"])
    data = load_study(config)
    alone, more, fewer = (TrainingSet(data, parse_code(code), 3, config.training) for code in config.codes)
    assert alone.real
    assert more.real
    assert fewer.real
    assert alone.real.micrographs.stems == more.real.micrographs.stems
    assert set(fewer.real.micrographs.stems) < set(alone.real.micrographs.stems)
    numbers = [more.pick(number) for number in range(60)]
    real_numbers = [number for dataset, number in numbers if dataset is more.real]
    generated_numbers = [number for dataset, number in numbers if dataset is more.generated]
    assert real_numbers == list(range(len(real_numbers)))
    assert generated_numbers == list(range(len(generated_numbers)))
    # 4 micrographs of 48² with crops of 32² are 8 crops, and there are 8 generated pairs.
    assert len(real_numbers) == pytest.approx(60 * 8 / 16, abs=1)
    for number in range(4):
        torch.testing.assert_close(alone.real[number]["image"], more.real[number]["image"], rtol=0, atol=0)
    assert [alone.pick(number) for number in range(3)] == [(alone.real, number) for number in range(3)]


def test_copy_paste_changes_half_of_the_real_crops_and_nothing_else(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    codes = ["R4F000", "R4F000P", "R4FALLP"]
    config = build_config(real, generated, tmp_path / "out", codes=codes)
    data = load_study(config)
    alone, pasted, both = (TrainingSet(data, parse_code(code), 3, config.training) for code in codes)
    assert alone.real
    assert pasted.real
    assert both.real
    assert both.generated
    assert pasted.real.micrographs.stems == alone.real.micrographs.stems
    changed = [not torch.equal(alone.real[number]["mask"], pasted.real[number]["mask"]) for number in range(60)]
    assert 0.2 < np.mean(changed) < 0.6
    for number in range(8):
        torch.testing.assert_close(both.real[number]["image"], pasted.real[number]["image"], rtol=0, atol=0)
    result = utility(config)
    assert result is not None
    assert [(row["code"], row["baseline"]) for row in result["differences"]] == [
        ("R4F000P", "R4F000"),
        ("R4FALLP", "R4F000"),
        ("R4FALLP", "R4F000P"),
    ]
    cells = read_cells(tmp_path / "out")
    first, second = (
        [cells[f"{code}-unet-seed{seed}.json"]["test"] for seed in (0, 1)] for code in ("R4F000P", "R4F000")
    )
    by_class = result["by_class"][0]
    for index in (0, 1):
        values = [np.mean([test["class_iou"][index] for test in tests]) for tests in (first, second)]
        assert by_class["class_iou"][index] == pytest.approx(values[0] - values[1])
    values = [
        np.mean([np.nanmean(np.array(test["boundary_f1"], float)) for test in tests]) for tests in (first, second)
    ]
    assert by_class["boundary_f1"] == pytest.approx(values[0] - values[1])
    assert "Differences by class" in (tmp_path / "out" / "utility.html").read_text()
    # Cells of older versions have no boundaries.
    for path in (tmp_path / "out" / "cells").glob("R4F000-*.json"):
        cell = json.loads(path.read_text())
        del cell["test"]["boundaries"]
        path.write_text(json.dumps(cell))
    older = utility(config)
    assert older is not None
    assert {row["boundary_f1"] for row in older["by_class"]} == {None}
    assert older["by_class"][0]["class_iou"] == by_class["class_iou"]
    assert "Does copy-paste help in addition to 4 real micrographs?" in (tmp_path / "out" / "utility.html").read_text()


def test_predicted_masks_join_the_real_micrographs(real: Path, generated: Path, tmp_path: Path) -> None:
    completed, codes = tmp_path / "completed", ["RALLF000", "RALLF000L", "RALLFALL", "RALLFALLL"]
    shutil.copytree(real, completed)
    for kind in ("images", "masks"):
        for name in ("000.png", "001.png"):
            shutil.copy(real / "test" / kind / name, completed / "train" / kind / f"new{name}")
    rows = [{"file_name": f"train/images/new00{number}.png", "labels": "predicted"} for number in (0, 1)]
    rows.append({"file_name": "train/images/000.png"})
    save_metadata(completed, rows)
    config = build_config(real, generated, tmp_path / "out", codes=codes, predicted=str(completed), seeds=[0])
    data = load_study(config)
    alone, predicted, _, both = (TrainingSet(data, parse_code(code), 0, config.training) for code in codes)
    assert alone.real
    assert predicted.real
    assert both.real
    assert predicted.real.micrographs.stems == both.real.micrographs.stems == [*data.train.stems, "new000", "new001"]
    new = predicted.real.micrographs.images[-2]
    np.testing.assert_array_equal(new, data.test.images[0])
    assert len(predicted.real) > len(alone.real)
    result = utility(config)
    assert result is not None
    assert [(row["code"], row["baseline"]) for row in result["differences"]] == [
        ("RALLF000L", "RALLF000"),
        ("RALLFALL", "RALLF000"),
        ("RALLFALL", "RALLF000L"),
        ("RALLFALLL", "RALLF000"),
        ("RALLFALLL", "RALLF000L"),
    ]
    assert result["notes"] == ["codes with L add 2 micrographs with predicted masks to the real ones"]
    path = tmp_path / "study.json"
    path.write_text(config.model_dump_json())
    from steelgen.cli.app import app

    dry = CliRunner().invoke(app, ["utility", "-c", str(path), "--dry-run"])
    rows = {words[0]: words[1:] for line in dry.output.splitlines() if (words := line.split()) and words[0] in codes}
    assert rows == {
        "RALLF000": ["8", "0", "0"],
        "RALLF000L": ["8", "0", "2"],
        "RALLFALL": ["8", "8", "0"],
        "RALLFALLL": ["8", "8", "2"],
    }
    page = (tmp_path / "out" / "utility.html").read_text()
    pairs = f"{data.num_generated} generated pairs"
    for question in (
        "Do predicted masks help in addition to 8 real micrographs?",
        f"Are {pairs} better than predicted masks, with 8 real micrographs?",
        f"Do {pairs} and predicted masks help in addition to 8 real micrographs?",
        f"Do {pairs} help in addition to 8 real micrographs and predicted masks?",
    ):
        assert question in page
    # Other predicted masks are another study.
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(completed / "train/masks/new000.png")
    with pytest.raises(InputError, match="predicted"):
        utility(config)


def test_predicted_masks_that_cannot_be_used(real: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> None:
        load_study(build_config(real, None, tmp_path / "out", codes=["RALLF000L"], predicted=str(folder)))

    with pytest.raises(InputError, match="codes: RALLF000L needs predicted masks, but predicted is null"):
        build_config(real, None, tmp_path / "out", codes=["RALLF000L"])
    with pytest.raises(InputError, match=r"predicted: runs/\{fold\} contains \{fold\}, but folds is null"):
        build_config(real, None, tmp_path / "out", codes=["RALLF000"], predicted="runs/{fold}")
    with pytest.raises(InputError, match="discs: predicted: has no micrographs with predicted masks in train"):
        load(real)
    completed = tmp_path / "completed"
    shutil.copytree(real, completed)
    save_metadata(completed, [{"file_name": "train/images/001.png", "labels": "predicted"}])
    with pytest.raises(InputError, match="completed: predicted: 001 is a micrograph of"):
        load(completed)
    save_dataset_info(completed, INFO.model_copy(update={"class_names": ["matrix", "pore"]}))
    with pytest.raises(InputError, match="its classes are matrix, pore"):
        load(completed)


def test_mixture_and_pretraining(real: Path, generated: Path, tmp_path: Path) -> None:
    config = build_config(real, generated, tmp_path / "out", training={"real_share": 0.75, "steps": 10})
    data, code = load_study(config), parse_code("RALLFALL")
    mixed = TrainingSet(data, code, 0, config.training)
    assert sum(mixed.pick(number)[0] is mixed.real for number in range(40)) == 30
    ahead = config.training.model_copy(update={"schedule": "pretrain", "pretrain_share": 0.4})
    first = TrainingSet(data, code, 0, ahead)
    kinds = [first.pick(number)[0] is first.real for number in range(40)]
    assert kinds == [False] * 16 + [True] * 24
    assert first.pick(16) == (first.real, 0)
    alone = TrainingSet(data, parse_code("RALLF000"), 0, ahead)
    assert alone.pick(0) == (alone.real, 0)


def test_networks_of_a_seed_start_alike(real: Path, generated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from steelgen.evaluation.utility import training as module

    config = build_config(real, generated, tmp_path / "out")
    data, started = load_study(config), []

    def remember(network: torch.nn.Module, *_: Any) -> dict[str, Any]:
        started.append({name: value.clone() for name, value in network.state_dict().items()})
        return {}

    monkeypatch.setattr(module, "train_network", remember)
    for code, seed in (("RALLF000", 0), ("RALLFALL", 0), ("RALLF000", 1)):
        torch.rand(seed + 5)  # earlier random numbers must not matter
        run_cell(Cell(parse_code(code), "unet", seed), data, config)
    assert all(torch.equal(started[0][name], started[1][name]) for name in started[0])
    assert any(not torch.equal(started[0][name], started[2][name]) for name in started[0])


def test_scores_are_those_of_the_confusion_matrices(real: Path, generated: Path, tmp_path: Path) -> None:
    result = utility(build_config(real, generated, tmp_path / "out"))
    assert result is not None
    assert json.loads((tmp_path / "out" / "utility.json").read_text()) == result
    cells = read_cells(tmp_path / "out")
    assert len(cells) == 4
    for cell in cells.values():
        matrix = np.sum(cell["test"]["confusion"], axis=0)
        assert matrix.sum() == 2 * 48 * 48
        by_hand = [matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]) for i in range(2)]
        assert cell["test"]["mean_iou"] == pytest.approx(np.mean(by_hand))
        assert cell["test"]["class_iou"] == pytest.approx(by_hand)
        assert [step for step, _ in cell["validation"]] == [2, 4]
        best = max(value for _, value in cell["validation"])
        assert dict(cell["validation"])[cell["best_step"]] == best
    # Files of segmentation stay those of versions without tasks, whether the config names the task or not.
    assert "task" not in result
    assert "task" not in result["config"]
    named = build_config(real, generated, tmp_path / "out", task="segment")
    assert hash_study(named, load_studies(named)) == result["study"]
    score = next(row for row in result["scores"] if row["code"] == "RALLFALL")
    values = [cells[f"RALLFALL-unet-seed{seed}.json"]["test"]["mean_iou"] for seed in (0, 1)]
    assert score["by_seed"] == pytest.approx(values)
    difference = result["differences"][0]["by_seed"]
    baseline = [cells[f"RALLF000-unet-seed{seed}.json"]["test"]["mean_iou"] for seed in (0, 1)]
    assert difference == pytest.approx(np.subtract(values, baseline))
    page = (tmp_path / "out" / "utility.html").read_text()
    assert "<script" not in page
    assert "Inconclusive" in page or "Yes:" in page or "No:" in page


def test_long_class_names_fit_on_the_page() -> None:
    """No table has more columns than that of mIoU, and each class has a column in one table."""
    names = [f"widmanstaetten_ferrite_{index}" for index in range(6)]
    confusions = {("RALLF000", "unet"): np.ones((2, 3, 6, 6), np.int64)}
    result = {**summarize(confusions, {"RALLF000": (4, 0)}, 100), "class_names": names}
    tables = build_utility_section(result).split("<table>")[1:]
    assert [table.split("</tr>")[0].count("<th") - 1 for table in tables] == [7, 6, 4]
    assert [table.count("<td") for table in tables] == [7, 6, 4]
    assert [sum(table.count(f"IoU {name}<") for table in tables) for name in names] == [1] * 6
    # Intersection 1, union 6 + 6 - 1.
    assert tables[1].count(">0.09091<") == 4


def test_five_steps_work(real: Path, tmp_path: Path) -> None:
    """A warm-up of 0.2 is one step; torch's schedule divides by its length minus one."""
    config = build_config(real, None, tmp_path, codes=["RALLF000"], seeds=[0], training={"steps": 5})
    cell = run_cell(Cell(parse_code("RALLF000"), "unet", 0), load_study(config), config)
    assert [step for step, _ in cell["validation"]] == [2, 4, 5]


def test_ignored_pixels_are_excluded(real: Path, tmp_path: Path) -> None:
    from PIL import Image

    half = tmp_path / "half"
    shutil.copytree(real, half)
    for path in (half / "test" / "masks").iterdir():
        image = Image.open(path)
        mask = np.array(image)
        mask[:24] = 255
        ignoring = Image.fromarray(mask)
        ignoring.putpalette(image.getpalette())
        ignoring.save(path)
    config = build_config(half, None, tmp_path / "out", codes=["RALLF000"], seeds=[0])
    utility(config)
    (cell,) = read_cells(tmp_path / "out").values()
    assert np.sum(cell["test"]["confusion"]) == 2 * 24 * 48


class Killed(Exception):
    pass


def test_a_killed_study_resumes_exactly(real: Path, generated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    utility(build_config(real, generated, whole))
    done = 0

    def run_some(*arguments: Any) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 3:
            raise Killed
        return run_cell(*arguments)

    monkeypatch.setattr(study, "run_cell", run_some)
    with pytest.raises(Killed):
        utility(build_config(real, generated, cut))
    assert len(read_cells(cut)) == 2
    assert not (cut / "utility.json").exists()
    lines: list[str] = []
    monkeypatch.setattr(study, "run_cell", run_cell)
    result = utility(build_config(real, generated, cut), lines.append)
    assert len(lines) == 2
    assert read_cells(cut) == read_cells(whole)
    assert result is not None
    assert result["scores"] == json.loads((whole / "utility.json").read_text())["scores"]


def test_shards_together_are_the_whole(real: Path, generated: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    utility(build_config(real, generated, whole))
    config = build_config(real, generated, parts)
    results = [utility(config, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert [result is None for result in results] == [True, True, False]
    assert read_cells(parts) == read_cells(whole)
    assert (parts / "utility.html").is_file()


def test_seeds_and_codes_may_be_added_but_nothing_else_changed(real: Path, generated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    utility(build_config(real, generated, out, seeds=[0], codes=["RALLF000"]))
    before = read_cells(out)
    lines: list[str] = []
    utility(build_config(real, generated, out, seeds=[0], codes=["RALLF000", "R50%F000"]), lines.append)
    assert len(lines) == 1
    assert before.items() <= read_cells(out).items()
    assert (out / "data_fraction.png").is_file()
    with pytest.raises(InputError, match=r"out: training\.steps was 4, is now 5: .*--allow-changed training\.steps"):
        utility(build_config(real, generated, out, training={"steps": 5}))
    (generated / "samples" / "000.png").write_bytes((generated / "samples" / "001.png").read_bytes())
    with pytest.raises(InputError, match=r"out: generated was \"[0-9a-f]{32}\", is now \""):
        utility(build_config(real, generated, out))


def test_a_study_resumes_with_allowed_changes(real: Path, generated: Path, tmp_path: Path) -> None:
    """Finished cells are kept, the study warns about them, and all must be tested on the same micrographs."""
    data, out = shutil.copytree(real, tmp_path / "discs"), tmp_path / "out"
    config = build_config(data, generated, out, seeds=[0], codes=["RALLF000"])
    utility(config)
    (name, before), *_ = read_cells(out).items()
    image = data / "train/images/000.png"
    image.write_bytes((data / "train/images/001.png").read_bytes())
    longer = build_config(data, generated, out, seeds=[0, 1], codes=["RALLF000"], training={"steps": 5})
    with pytest.raises(InputError, match=r"dataset was .*; training\.steps was 4, is now 5"):
        utility(longer)
    with pytest.raises(InputError, match=r"training\.steps was 4"):
        utility(longer, allow_changed=["dataset"])
    result = utility(longer, allow_changed=["dataset", "training"])
    assert result is not None
    assert result["warnings"][0] == "1 of 2 cells are older than the changes in changes.jsonl"
    cells = read_cells(out)
    assert cells.pop(name) == before
    assert [cell["study"] for cell in cells.values()] == [result["study"]]
    noted = [json.loads(line) for line in (out / "changes.jsonl").read_text().splitlines()]
    assert [(row["field"], row["now"]) for row in noted if row["field"] != "dataset"] == [("training.steps", 5)]
    assert utility(longer) == {**result, "environment": utility(longer)["environment"]}  # type: ignore[index]
    for kind in ("images", "masks"):
        (data / "test" / kind / "000.png").rename(data / "test" / kind / "other.png")
    with pytest.raises(InputError, match="cell RALLF000, unet, seed 0 was tested on other micrographs"):
        utility(longer, allow_changed=["dataset"])


def test_studies_of_older_versions_resume_or_are_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    """They have no hashes by kind of data, only that of all data."""
    out = tmp_path / "out"
    config = build_config(real, generated, out, seeds=[0], codes=["RALLF000"])
    utility(config)
    start = json.loads((out / "study.json").read_text())
    older = json.dumps({key: value for key, value in start.items() if key not in ("inputs", "earlier")})
    (out / "study.json").write_text(older)
    before = read_cells(out)
    utility(config)
    assert read_cells(out) == before
    (out / "study.json").write_text(older)
    (generated / "samples" / "000.png").write_bytes((generated / "samples" / "001.png").read_bytes())
    with pytest.raises(InputError, match="contains a study of other data"):
        utility(config)


def test_both_formats_of_sampling_and_separate_masks_are_read(real: Path, generated: Path, tmp_path: Path) -> None:
    expected = load_study(build_config(real, generated, tmp_path / "out")).compute_hash()
    dataset = tmp_path / "as-dataset"
    shutil.copytree(generated / "samples", dataset / "train" / "images")
    shutil.copytree(generated / "labels", dataset / "train" / "masks")
    shutil.copy(generated / "sampling.json", dataset)
    assert load_study(build_config(real, dataset, tmp_path / "out")).compute_hash() == expected
    apart = build_config(real, generated / "samples", tmp_path / "out", generated_masks=str(generated / "labels"))
    assert load_study(apart).compute_hash() == expected


def test_bf16_and_package_versions_are_recorded(real: Path, tmp_path: Path) -> None:
    config = build_config(real, None, tmp_path / "out", codes=["R2F000"], seeds=[0], mixed_precision="bf16")
    result = utility(config)
    assert result is not None
    assert result["config"]["mixed_precision"] == "bf16"
    assert result["differences"] == []
    assert {"torch", "monai", "transformers"} <= result["environment"]["packages"].keys()


def test_val_share_replaces_the_validation_split(real: Path, tmp_path: Path) -> None:
    config = build_config(real, None, tmp_path / "out", codes=["RALLF000"], val_split=None, val_share=0.25)
    data = load_study(config)
    assert (len(data.train), len(data.val)) == (6, 2)
    assert not set(data.train.stems) & set(data.val.stems)


def test_a_pretrained_network_and_strong_augmentation_make_a_study(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(network: torch.nn.Module, *rest: Any) -> Any:
        seen.append(network)
        return train_network(network, *rest)

    monkeypatch.setattr("steelgen.evaluation.utility.training.train_network", watch)
    training = {"steps": 40, "validate_every": 1, "patience": 2, "augmentation": {}, "enlargement": None}
    more = {"architectures": ["unet:efficientnet-lite0"], "codes": ["RALLF000"], "seeds": [0], "training": training}
    config = build_config(real, None, tmp_path / "out", **more)
    result = utility(config)
    assert [row["architecture"] for row in result["scores"]][:1] == ["unet:efficientnet-lite0"]
    cell = json.loads((tmp_path / "out" / "cells" / "RALLF000-unet_efficientnet-lite0-seed0.json").read_text())
    assert cell["test"]["mean_iou"] > 0.5
    steps = [step for step, _ in cell["validation"]]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == cell["best_step"] + 2 or len(steps) == 40
    assert find_pretrained_part(seen[0]) is not None


def test_augmentation_changes_images_and_not_which_crops(real: Path, generated: Path, tmp_path: Path) -> None:
    def sample(step: int, augmentation: dict[str, Any] | None) -> tuple[torch.Tensor, torch.Tensor]:
        training = {"augmentation": augmentation, "brightness": 0, "contrast": 0}
        config = build_config(real, generated, tmp_path / "out", training=training)
        data = load_study(config)
        return TrainingSet(data, parse_code("RALLFALL"), 0, config.training).sample_batch(step, 6)

    plain, off = sample(3, None), sample(3, dict.fromkeys(OFF, 0))
    torch.testing.assert_close(off[0].contiguous(), plain[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(off[1], plain[1])
    images, masks = sample(3, {"rare_share": 0})
    torch.testing.assert_close(masks, plain[1])
    assert (images - plain[0]).abs().amax(dim=(1, 2, 3)).min() > 0.02
    torch.testing.assert_close(sample(3, {"rare_share": 0})[0], images, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": ["R9F000"]}, "codes: R9F000: needs 9 real micrographs, there are 8"),
        ({"codes": ["RALLF9"]}, "codes: RALLF9: needs 9 generated pairs, there are 8"),
        ({"codes": ["RALL"]}, "codes: 'RALL' is not a code"),
        ({"codes": ["RALLF000", "RALLF000"]}, "codes: 'RALLF000' is listed twice"),
        (
            {"architectures": ["resnet"]},
            "unknown architecture 'resnet'; known: unet, unet:efficientnet-lite0",
        ),
        ({"generated": None}, "codes: RALLFALL needs generated pairs"),
        ({"generated": None, "codes": ["RALLF000"], "geometry": {}}, "geometry.image_size: is missing"),
        ({"test_split": "train"}, "nothing is held out"),
        ({"val_split": "train"}, "val_split: 'train' is also the train_split"),
        ({"num_classes": 3}, "has 2 classes, not 3"),
        ({"seeds": [-1]}, r"seeds.0: .*greater than or equal to 0"),
    ],
)
def test_unusable_configs_give_one_line(
    changes: dict[str, Any], message: str, real: Path, generated: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        utility(build_config(real, generated, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unusable_generated_folders_give_one_line(real: Path, generated: Path, tmp_path: Path) -> None:
    save_dataset_info(generated, INFO.model_copy(update={"class_names": ["island", "matrix"]}))
    with pytest.raises(InputError, match=r"its classes are island, matrix, those of .* are matrix, island"):
        utility(build_config(real, generated, tmp_path / "out"))
    (generated / "dataset.json").unlink()
    shutil.rmtree(generated / "labels")
    with pytest.raises(InputError, match="no masks in labels/"):
        utility(build_config(real, generated, tmp_path / "out"))
    for path in (generated / "samples").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="0 images; at least 4 are needed"):
        utility(build_config(real, generated, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_reported_before_training(real: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    config = build_config(real, None, tmp_path / "out", codes=["RALLF000"], architectures=["unet", "smp:FPN"])
    with pytest.raises(InputError, match="smp:FPN: needs `pip install segmentation-models-pytorch`"):
        utility(config)
    assert not (tmp_path / "out").exists()


def test_command(real: Path, generated: Path, tmp_path: Path) -> None:
    from steelgen.cli.app import app

    path, out = tmp_path / "utility.json", tmp_path / "out"
    path.write_text(json.dumps(build_config(real, generated, out, seeds=[0]).model_dump(mode="json")))
    dry = CliRunner().invoke(app, ["utility", "-c", str(path), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "2 cells, 0 done" in dry.output
    first = CliRunner().invoke(app, ["utility", "-c", str(path), "--shard", "1/2"])
    assert "shard 1/2 is complete" in first.output
    done = CliRunner().invoke(app, ["utility", "-c", str(path)])
    assert done.exit_code == 0, done.output
    assert "RALLFALL" in done.output
    assert "Do 8 generated pairs help in addition to 8 real micrographs?" in done.output
    wrong = CliRunner().invoke(app, ["utility", "-c", str(path), "--set", "training.step=3"])
    assert wrong.exit_code == 2
    assert "did you mean 'steps'" in wrong.output


def test_an_evaluation_includes_a_finished_study(real: Path, generated: Path, tmp_path: Path, cache: Path) -> None:
    from steelgen.config.evaluate import EvaluateConfig
    from steelgen.evaluation.comparison import compare
    from steelgen.evaluation.evaluate import evaluate

    out = tmp_path / "study"
    values = {
        "generated": str(generated),
        "dataset": str(real),
        "output_dir": str(tmp_path / "evaluation"),
        "segmenter": {"steps": 2, "batch_size": 4, "base_channels": 8, "num_levels": 2},
        "features": {"kinds": "tests.evaluation.test_features:mean_features"},
        "memorization": {"max_images": 2, "search_size": 16},
        "utility": str(out),
    }
    with pytest.raises(InputError, match=r"study/utility\.json: no such file"):
        evaluate(parse_config(values, EvaluateConfig))
    study_result = utility(build_config(real, generated, out))
    assert study_result is not None
    result = evaluate(parse_config(values, EvaluateConfig))
    figures = {figure["metric"]: figure for figure in result["figures"] if figure["section"] == "utility"}
    difference = figures["mIoU RALLFALL − RALLF000 (unet)"]
    assert difference["value"] == study_result["differences"][0]["difference"]
    assert difference["interval"] == study_result["differences"][0]["interval"]
    assert "Do 8 generated pairs help" in result["verdict"][-1]["question"]
    assert "Difference to real micrographs alone" in (tmp_path / "evaluation" / "report.html").read_text()
    values = {**values, "utility": None, "output_dir": str(tmp_path / "without")}
    evaluate(parse_config(values, EvaluateConfig))
    _, rows, _ = compare([tmp_path / "evaluation", tmp_path / "without"])
    row = next(row for row in rows if row[0] == "mIoU RALLFALL − RALLF000 (unet)")
    assert row[2]["value"] == difference["value"]
    assert row[3] is None


def test_slurm_gives_a_study_an_array_and_a_gathering_job(real: Path, generated: Path, tmp_path: Path) -> None:
    from steelgen.cli.app import app

    path, scripts = tmp_path / "utility.json", tmp_path / "scripts"
    path.write_text(json.dumps(build_config(real, generated, tmp_path / "out").model_dump(mode="json")))
    arguments = ["slurm", "render", "utility", "-c", str(path), "--array"]
    done = CliRunner().invoke(app, [*arguments, "4%2", "--out", str(scripts)])
    assert done.exit_code == 0, done.output
    assert "#SBATCH --array=1-4%2" in (scripts / "utility.sbatch").read_text()
    assert "action=utility" in (scripts / "gather.sbatch").read_text()
    many = CliRunner().invoke(app, [*arguments, "5"])
    assert many.exit_code == 2
    assert "--array 5: more shards than the 4 cells" in many.output

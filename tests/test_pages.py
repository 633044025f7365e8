"""Text from files never becomes markup of a page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steelgen.data.check import Problem, check_dataset
from steelgen.data.check_page import build_page
from steelgen.errors import InputError
from steelgen.evaluation.comparison import build_comparison
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.report import build_report
from steelgen.evaluation.sets import load_evidence
from steelgen.evaluation.study import utility
from steelgen.evaluation.study_views import build_study_page
from steelgen.evaluation.utility.results import load_study_result
from tests.conftest import write_tiny_dataset
from tests.evaluation import test_classification, test_evaluate, test_instances, test_utility
from tests.evaluation.conftest import INFO, save_pairs

POISON = "\"'></style></title></svg><script>alert(1)</script><img src=x onerror=alert(1)>&"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: str, poisoned: int = 1) -> None:
    """The page has no script and shows at least `poisoned` hostile values as text."""
    reader = _Reader()
    reader.feed(page)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert all(value is None or value.startswith("data:") for name, value in reader.attributes if name == "src")
    assert reader.text.count("<script>alert(1)</script>") >= poisoned


def poison(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """A JSON document with markup in place of all strings except those under the keys `keep`."""
    if isinstance(value, dict):
        return {key: inner if key in keep else poison(inner, keep) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [poison(inner, keep) for inner in value]
    return POISON if isinstance(value, str) else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, generated pairs, their study in study/ and evaluation in evaluation/."""
    from steelgen.data.folder import save_dataset_info

    root = tmp_path_factory.mktemp("pages")
    for seed, (split, count) in enumerate({"train": 4, "val": 1, "test": 2}.items()):
        save_pairs(root / "discs" / split / "images", root / "discs" / split / "masks", count, 48, seed)
    save_dataset_info(root / "discs", INFO)
    save_pairs(root / "generated" / "samples", root / "generated" / "labels", 8, 32, 9)
    # A curve needs two numbers of micrographs.
    codes = ["RALLF000", "R2F000", "R2FALL", "RALLFALL"]
    utility(test_utility.build_config(root / "discs", root / "generated", root / "study", codes=codes))
    evaluate(build_config(root, utility=str(root / "study")))
    return root


def build_config(root: Path, **more: Any) -> Any:
    quick = {"microstructure": {"max_images": 4}, **more}
    return test_evaluate.build_config(root / "generated", root / "discs", root / "evaluation", **quick)


def test_study(folder: Path) -> None:
    result = json.loads((folder / "study" / "utility.json").read_text())
    page = build_study_page(poison(result))
    assert "Data-fraction curve" in page
    assert_harmless(page, 20)
    assert "<script" not in build_study_page(result)


def test_classification_study(tmp_path: Path) -> None:
    test_classification.save_sides(tmp_path, {"train": (4, 4), "val": (2, 2), "test": (3, 3)})
    test_classification.save_textures(tmp_path / "good", 4, 0, True)
    result = utility(test_classification.build_config(tmp_path, tmp_path / "out", seeds=[0]))
    assert result is not None
    page = build_study_page(poison(result, keep=("task",)))
    assert "Curve over the number of real defective images" in page
    assert_harmless(page, 20)
    assert "<script" not in build_study_page(result)


def test_instance_study(tmp_path: Path) -> None:
    test_instances.save_discs(tmp_path / "real", {"train": 2, "val": 1, "test": 1})
    more = {"architectures": ["unet"], "seeds": [0], "codes": ["R1F000", "R1F000P", "RALLF000"], "generated": None}
    result = utility(test_instances.build_config(tmp_path, tmp_path / "out", **more))
    assert result is not None
    page = build_study_page(poison(result, keep=("task",)))
    assert "Data-fraction curve" in page
    assert_harmless(page, 20)
    assert "<script" not in build_study_page(result)


def test_report(folder: Path) -> None:
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    structure = result["details"]["microstructure"]["images"]
    structure["distances"] = {f"{POISON}{key}": values for key, values in structure["distances"].items()}
    evidence, _ = load_evidence(build_config(folder))
    names = [f"{name}{POISON}" for name in evidence.info.class_names]
    evidence = replace(evidence, info=evidence.info.model_copy(update={"class_names": names}))
    study = poison(load_study_result(folder / "study"))
    page = build_report(poison(result, keep=("micrograph",)), evidence, {}, study)
    assert "Difference to real micrographs alone" in page
    assert_harmless(page, 100)


def test_comparison(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    for name in (f"{POISON.replace('/', '')}", "b"):
        (tmp_path / name).mkdir()
        poisoned = poison(result, keep=("standing", "better"))
        poisoned["config"]["seed"] = f"{POISON}{name}"
        (tmp_path / name / "evaluation.json").write_text(json.dumps(poisoned))
    assert_harmless(build_comparison(list(tmp_path.iterdir())), 20)


@pytest.mark.parametrize(("place", "field"), [("verdict", "standing"), ("figures", "better"), ("figures", "seed")])
def test_words_that_select_a_style_are_validated(folder: Path, tmp_path: Path, place: str, field: str) -> None:
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    result[place][0][field] = POISON
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=rf"evaluation\.json: {place}\.0\.{field}: "):
        build_comparison([tmp_path, tmp_path])


def test_check_page(tmp_path: Path) -> None:
    root = write_tiny_dataset(tmp_path / "tiny")
    info = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(poison(info)))
    stem = POISON.replace("/", "")
    for kind in ("images", "masks"):
        (root / "train" / kind / "train0.png").rename(root / "train" / kind / f"{stem}.png")
    report = check_dataset(root)
    report.problems.append(Problem(POISON, POISON))
    assert_harmless(build_page(report), 13)

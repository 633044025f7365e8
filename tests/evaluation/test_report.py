"""Rules of the verdict, the report page, and comparison of evaluations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from steelgen.charts import Curve, plot_chart
from steelgen.data.sheets import build_sheet
from steelgen.errors import InputError
from steelgen.evaluation.comparison import compare
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.verdict import Answer, compute_verdict
from tests.evaluation.test_evaluate import build_config

SMALL = {"microstructure": {"max_images": 4}}


@pytest.fixture(autouse=True)
def _use_cache(cache: Path) -> None:
    pass


def build_figures(kid: float, island: float, miou: float, copies: float, ct: float) -> list[Figure]:
    def figure(section: str, metric: str, value: float, floor: float, spread: float | None = None) -> Figure:
        return Figure(section, metric, "generated vs test", value, floor, (9, 9), 0, "lower", spread)

    return [
        figure("fidelity", "KID-Some", kid, 0.01, 0.001),
        figure("microstructure", "island area W1 (px²) of images", island, 2.0),
        figure("faithfulness", "mIoU", miou, 0.8),
        figure("memorization", "copies (share with d1/d2 < 1/3)", copies, 0.0),
        figure("memorization", "C_T, pixels (below -3: copying)", ct, 0.0),
    ]


def test_verdict_follows_the_floors() -> None:
    def stand(*values: float) -> list[str]:
        return [answer.standing for answer in compute_verdict(build_figures(*values))]

    assert stand(0.0119, 2.9, 0.73, 0.0, 0.5) == ["good"] * 4
    assert stand(0.019, 3.1, 0.6, 0.0, -4) == ["fair", "poor", "fair", "fair"]
    assert stand(0.2, 9.0, 0.3, 0.1, 0) == ["poor"] * 4
    assert [answer.standing for answer in compute_verdict([])] == ["unknown"] * 4


def test_a_class_that_the_segmenter_does_not_find_is_left_out_of_the_verdict() -> None:
    def judge(*classes: tuple[str, float, float]) -> Answer:
        figures = build_figures(0.0119, 2.9, 0.5, 0.0, 0.5)
        for name, value, floor in classes:
            figures.append(Figure("faithfulness", f"IoU {name}", "", value, floor, (9, 9), 0, "higher"))
        return compute_verdict(figures)[2]

    plain = judge(("ferrite", 0.6, 0.8), ("cementite", 0.4, 0.8))
    assert plain.standing == "poor"
    assert "0.500" in plain.answer
    assert "Not judged" not in plain.answer
    partly = judge(("ferrite", 0.75, 0.8), ("films", 0.01, 0.29), ("absent", float("nan"), 0.1))
    assert partly.standing == "good"
    assert "mIoU 0.750; on real images it reaches 0.800. Not judged: films; " in partly.answer
    assert "below 0.3" in partly.answer
    assert judge(("films", 0.29, 0.29)).standing == "unknown"
    assert judge(("edge", 0.29, 0.3), ("films", 0.0, 0.2)).standing == "good"


def test_page_is_self_contained(generated: Path, dataset: Path, tmp_path: Path) -> None:
    evaluate(build_config(generated, dataset, tmp_path / "out", **SMALL))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.index("Do the images look real?") < page.index("<table>")
    assert page.count("<svg") == 1 + 2 * 2
    drawn = re.findall(r"<svg.*?</svg>", page)
    assert len(drawn) == page.count("<svg")
    for svg in drawn:
        ElementTree.fromstring(svg)
    ids = re.findall(r'<\w+ id="(.*?)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert "<style" not in "".join(drawn)


def test_chart_survives_flat_and_missing_values() -> None:
    def draw() -> str:
        return plot_chart("flat <&> $1$", [1, 2, 3], [Curve("a", [2, float("nan"), 2], "#000")], "px")

    svg = draw()
    assert "nan" not in svg
    assert "flat <&> $1$" in {element.text for element in ElementTree.fromstring(svg).iter()}
    assert draw() == svg


def test_sheet_places_tiles() -> None:
    sheet = build_sheet([[np.full((4, 4), 9, np.uint8), np.full((8, 8, 3), 7, np.uint8)]], tile=8, gap=2)
    assert sheet.shape == (8, 18, 3)
    assert (sheet[:, :8] == 9).all()
    assert (sheet[:, 8:10] == 255).all()
    assert (sheet[:, 10:] == 7).all()


def test_compare_tabulates_evaluations(generated: Path, dataset: Path, tmp_path: Path) -> None:
    from steelgen.cli.app import app

    for name, seed in (("a", 0), ("b", 1)):
        evaluate(build_config(generated, dataset, tmp_path / name, seed=seed, **SMALL))
    columns, rows, differences = compare([tmp_path / "a", tmp_path / "b"])
    assert columns == ["metric", "compared", "a", "b", "floor", "better"]
    assert len(rows) == len(json.loads((tmp_path / "a" / "evaluation.json").read_text())["figures"])
    assert any("seed 1" in line for line in differences)
    done = CliRunner().invoke(
        app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page.html")]
    )
    assert done.exit_code == 0
    assert "<b>" in (tmp_path / "page.html").read_text()


def test_compare_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name two or more"):
        compare([tmp_path])
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(InputError, match=r"evaluation\.json: config: is missing"):
        compare([tmp_path, tmp_path])
    with pytest.raises(InputError, match="no such file"):
        compare([tmp_path / "a", tmp_path / "b"])

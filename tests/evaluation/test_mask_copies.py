"""Planted copies of training masks are found, new masks are not flagged, real ones are not searched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelgen.config.evaluate import EvaluateConfig
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs
from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.placement import CropGeometry, apply_symmetry
from steelgen.evaluation.copy_search import CopySearch, cut_mask
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.judge_mask_copies import judge_mask_copies, measure_agreement, to_levels
from steelgen.evaluation.sets import Judgment, load_evidence
from tests.evaluation.conftest import INFO, draw_micrograph
from tests.evaluation.test_evaluate import build_config, find

SEARCH = {"memorization": {"max_images": 8, "search_size": 16}}


@pytest.fixture(autouse=True)
def _use_cache(cache: Path) -> None:
    pass


def replace_masks(generated: Path, dataset: Path, copies: int) -> None:
    """Gives 8 samples the masks of other discs, of which the first are flipped and turned training masks."""
    _, planted = cut_crops(load_micrographs(dataset, "train"), CropGeometry(32, 32), 8, seed=3, augment=True)
    rng = np.random.default_rng(21)
    for index in range(8):
        mask = planted[index] if index < copies else draw_micrograph(rng, 32)[1]
        save_mask(generated / "labels" / f"{index:03d}.png", mask, INFO.palette)


def set_source(generated: Path, **sampling: Any) -> None:
    path = generated / "sampling.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **sampling}))


def judge(config: EvaluateConfig) -> Judgment:
    return judge_mask_copies(load_evidence(config)[0], lambda line: None)


def test_planted_copies_of_masks_are_found_and_shown(generated: Path, dataset: Path, tmp_path: Path) -> None:
    replace_masks(generated, dataset, 3)
    set_source(generated, config={"mask_source": {"kind": "learned"}})
    result = evaluate(build_config(generated, dataset, tmp_path / "out", **SEARCH))
    details = result["details"]["memorization"]["masks"]
    assert details["copies"] == ["000.png", "001.png", "002.png"]
    copied, equal = (
        find(result, "mask copies (share with d1/d2 < 1/3)", "generated"),
        find(result, "equal pixels at the nearest place, masks", "generated"),
    )
    assert (copied["value"], copied["floor"], copied["n"]) == (3 / 8, 0, [8, 8])
    assert equal["value"] > equal["floor"]
    assert details["equal_pixels"][:3] == [1, 1, 1]
    assert {row["generated"] for row in details["closest"][:3]} == set(details["copies"])
    assert any(
        "37.5 % of 8 generated masks are copies of places in the training masks" in w for w in result["warnings"]
    )
    answer = next(each for each in result["verdict"] if "copies" in each["question"])
    assert answer["standing"] == "poor"
    assert "37.5 % of 8 masks flagged as copies" in answer["answer"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"Closest training masks.*0\.00 \(100 %\), 0\.00 \(100 %\), 0\.00 \(100 %\)", page, re.DOTALL)


def test_new_masks_are_no_copies(generated: Path, dataset: Path, tmp_path: Path) -> None:
    replace_masks(generated, dataset, 0)
    set_source(generated, makes_masks=True, config={"mask_source": {"kind": "none"}, "labels": None})
    figures, _, warnings = judge(build_config(generated, dataset, tmp_path / "out", **SEARCH))
    assert (figures[0].value, figures[0].floor) == (0, 0)
    assert not warnings


@pytest.mark.parametrize(
    ("sampling", "config", "reason"),
    [
        ({}, {}, "the masks were not made by a generator or by rules"),
        ({"config": {"mask_source": {"kind": "split"}}, "makes_masks": True}, {}, "the masks were not made"),
        (
            {"config": {"mask_source": {"kind": "none"}, "labels": {"segmenter": "x"}}, "makes_masks": True},
            {},
            "the masks were not made",
        ),
        (
            {"config": {"mask_source": {"kind": "learned"}}},
            {"memorization": {"max_images": 2, "search_size": 16, "search_masks": False}},
            "memorization.search_masks is false",
        ),
    ],
)
def test_masks_that_are_not_new_are_not_searched(
    generated: Path, dataset: Path, tmp_path: Path, sampling: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    set_source(generated, **sampling)
    figures, details, warnings = judge(build_config(generated, dataset, tmp_path / "out", **config))
    assert (figures, warnings) == ([], [])
    assert not details["searched"]
    assert reason in details["reason"]


def test_the_report_says_that_masks_were_not_searched(generated: Path, dataset: Path, tmp_path: Path) -> None:
    result = evaluate(build_config(generated, dataset, tmp_path / "out"))
    assert not [figure for figure in result["figures"] if figure["metric"].startswith("mask copies")]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The training masks were not searched for copies: the masks were not made by a generator" in page
    assert "Closest training masks" not in page


def test_the_search_can_be_asked_for(generated: Path, dataset: Path, tmp_path: Path) -> None:
    replace_masks(generated, dataset, 8)
    asked = {"memorization": {"max_images": 2, "search_size": 16, "search_masks": True}}
    figures, _, _ = judge(build_config(generated, dataset, tmp_path / "out", **asked))
    assert figures[0].value == 1


def test_masks_of_several_classes_are_found_at_their_place_in_every_symmetry() -> None:
    """Ignored pixels count neither for nor against; crops are shrunk."""
    rng, info = np.random.default_rng(0), DatasetInfo(name="x", class_names=["a", "b", "c"])

    def draw() -> np.ndarray:
        mask = draw_micrograph(rng, 160)[1]
        mask[draw_micrograph(rng, 160)[1] > 0] = 2
        return mask

    masks = [draw() for _ in range(3)]
    masks[0][:20] = 255
    train = Micrographs(info, list("pqr"), [to_levels(mask, 3) for mask in masks], masks)
    search = CopySearch(train, CropGeometry(32, 64), 16)
    for symmetry in range(8):
        window = masks[symmetry % 3][40:104, 50:114]
        given = apply_symmetry(np.ascontiguousarray(window[1::2, 1::2]), symmetry)
        (match,) = search.find(to_levels(given, 3)[None])
        assert (match.micrograph, match.symmetry) == (symmetry % 3, symmetry)
        assert match.ratio < 1 / 3
        # One of two pixels of the training mask is in the mask; the place found may be beside it by one.
        assert measure_agreement(given, cut_mask(train, match, 64, 32), 3) > 0.9
    first, second = np.array([[0, 1, 255, 2]], np.uint8), np.array([[0, 2, 1, 255]], np.uint8)
    assert measure_agreement(first, second, 3) == 0.5
    assert to_levels(np.array([[0, 1, 2, 255]], np.uint8), 3).tolist() == [[0, 128, 255, 127]]

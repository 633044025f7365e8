"""Details copied from training micrographs are found where whole images, shrunk, differ from all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelgen.config.evaluate import EvaluateConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.images import load_image, save_image
from steelgen.evaluation import judge_detail_copies
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.sets import Judgment, load_evidence
from tests.evaluation.test_evaluate import build_config, find

SEARCH = {"memorization": {"max_images": 6, "search_size": 16}}


@pytest.fixture(autouse=True)
def _use_cache(cache: Path) -> None:
    pass


def list_places(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng((seed, judge_detail_copies._STREAM))
    return rng.integers(32 - 16 + 1, size=(6, 2))


def plant(generated: Path, dataset: Path, copies: int) -> None:
    """Pastes turned and noisy places of training micrographs where the first images are searched."""
    train, rng = load_micrographs(dataset, "train"), np.random.default_rng(5)
    paths = sorted((generated / "samples").glob("*.png"))
    for index, (top, left) in enumerate(list_places()[:copies]):
        source = np.asarray(train.images[index % len(train.images)])
        y, x = (int(rng.integers(length - 16 + 1)) for length in source.shape)
        noisy = np.rot90(source[y : y + 16, x : x + 16], index) + rng.normal(0, 2, (16, 16))
        image = load_image(paths[index]).copy()
        image[top : top + 16, left : left + 16] = noisy.clip(0, 255).astype(np.uint8)
        save_image(paths[index], image)


def name_stages(generated: Path) -> None:
    path = generated / "sampling.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "config": {"stages": [{"generator": "a"}, {"generator": "b"}]}}))


def judge(config: EvaluateConfig) -> Judgment:
    return judge_detail_copies.judge_detail_copies(load_evidence(config)[0], lambda line: None)


def test_planted_details_are_found(generated: Path, dataset: Path, tmp_path: Path) -> None:
    plant(generated, dataset, 3)
    name_stages(generated)
    result = evaluate(build_config(generated, dataset, tmp_path / "out", **SEARCH))
    details = result["details"]["memorization"]["details"]
    assert details["copies"] == ["000.png", "001.png", "002.png"]
    copied = find(result, "detail copies (share with d1/d2 < 1/3)", "patches of 16 px")
    assert (copied["value"], copied["floor"], copied["n"]) == (3 / 6, 0, [6, 6])
    assert find(result, "copies (share with d1/d2 < 1/3)", "generated")["value"] == 0
    answer = next(each for each in result["verdict"] if "copies" in each["question"])
    assert answer["standing"] == "poor"
    assert "50.0 % of 6 details flagged as copies" in answer["answer"]
    assert any("50.0 % of 6 generated images have a detail copied" in warning for warning in result["warnings"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the images are not of a cascade"),
        ({"search_details": True, "search_size": 20}, "images of 32 px are shrunk less than twice"),
    ],
)
def test_others_are_not_searched(
    generated: Path, dataset: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    config = build_config(generated, dataset, tmp_path / "out", memorization={**SEARCH["memorization"], **options})
    assert judge(config) == ([], {"searched": False, "reason": reason}, [])

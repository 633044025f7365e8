"""Means and intervals of a utility study against hand-computed numbers, scipy and closed forms."""

import numpy as np
import pytest
import scipy.stats

from steelgen.config.utility import find_rivals
from steelgen.evaluation.iou import compute_mean_iou
from steelgen.evaluation.utility.statistics import (
    POOLED,
    bootstrap_differences,
    find_baselines,
    find_warnings,
    summarize,
    t_interval,
)
from steelgen.evaluation.verdict import judge_differences


def make_confusion(iou: float, pixels: int = 1000) -> np.ndarray:
    """A matrix of two classes with the same IoU for both: x of a class right, y wrong, x / (x + 2y) = iou."""
    wrong = round(pixels * (1 - iou) / (1 + iou))
    return np.array([[pixels - wrong, wrong], [wrong, pixels - wrong]])


def test_mean_iou_by_hand():
    # Class 0: 3 / (3+1+2); class 1: 4 / (4+2+1); class 2 occurs nowhere.
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert compute_mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
    stack = np.stack([confusion, np.zeros((3, 3), int)])
    assert compute_mean_iou(stack)[0] == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert np.isnan(compute_mean_iou(stack)[1])


def test_t_interval_is_scipys():
    values = np.array([0.41, 0.45, 0.40, 0.47])
    expected = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)
    assert t_interval(values[:1]) is None


def test_bootstrap_over_seeds_alone_is_scipys():
    rng = np.random.default_rng(0)
    # With one test micrograph only seeds are resampled, and the statistic is the mean of the paired differences.
    treated = np.array([[[make_confusion(v, 10**6)] for v in rng.normal(0.6, 0.05, 12)]])
    control = np.array([[[make_confusion(v, 10**6)] for v in rng.normal(0.5, 0.05, 12)]])
    differences = (compute_mean_iou(treated) - compute_mean_iou(control)).ravel()
    draws = bootstrap_differences(treated, control, 20000)[:, 0]
    expected = scipy.stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=20000, rng=1)
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx(expected.confidence_interval, abs=1.5e-3)
    # The mean of n resampled values has standard deviation s·√((n-1)/n)/√n.
    assert draws.std() == pytest.approx(differences.std() / np.sqrt(12), rel=0.03)


def test_bootstrap_over_micrographs_alone_is_scipys():
    rng = np.random.default_rng(1)
    pixels = rng.integers(500, 5000, 15)
    treated, control = (
        np.array(
            [make_confusion(iou, int(size)) for iou, size in zip(rng.uniform(low, low + 0.5, 15), pixels, strict=True)]
        )
        for low in (0.4, 0.3)
    )

    def difference(indices):
        return compute_mean_iou(treated[indices].sum(0)) - compute_mean_iou(control[indices].sum(0))

    draws = bootstrap_differences(treated[None, None], control[None, None], 4000)[:, 0]
    expected = scipy.stats.bootstrap(
        (np.arange(15),), difference, method="percentile", n_resamples=4000, vectorized=False, rng=2
    )
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx(expected.confidence_interval, abs=6e-3)


def test_intervals_of_equal_gaussians_mostly_include_zero():
    """Closed form: with σ of a difference 0.05·√2 and 30 seeds the interval is about ±1.96·0.05·√2/√30 wide."""
    rng = np.random.default_rng(2)
    widths, covered = [], 0
    for _ in range(40):
        pair = rng.normal(0.5, 0.05, (2, 30))
        treated, control = (np.array([[[make_confusion(v, 10**5)] for v in row]]) for row in pair)
        low, high = np.percentile(bootstrap_differences(treated, control, 500), [2.5, 97.5])
        widths.append(high - low)
        covered += low <= 0 <= high
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.05 * np.sqrt(2) / np.sqrt(30), rel=0.1)
    assert covered >= 34  # binomial of 40 at 0.95: below 34 once in 1,700


def test_summary_pairs_codes_with_their_own_real_micrographs():
    values = {"R25%F000": 0.3, "R25%FALL": 0.4, "RALLF000": 0.6, "RALLFALL": 0.6, "R000FALL": 0.2}
    counts = {"R25%F000": (4, 0), "R25%FALL": (4, 99), "RALLF000": (16, 0), "RALLFALL": (16, 99), "R000FALL": (0, 99)}
    confusions = {
        (code, architecture): np.array([[make_confusion(value + shift, 10**6)] * 3] * 2)
        for code, value in values.items()
        for architecture, shift in (("a", 0.0), ("b", 0.1))
    }
    found = summarize(confusions, counts, 200)
    assert [(row["code"], row["baseline"]) for row in found["differences"][::3]] == [
        ("R25%FALL", "R25%F000"),
        ("RALLFALL", "RALLF000"),
        ("R000FALL", "RALLF000"),
    ]
    pooled = [row for row in found["differences"] if row["architecture"] == POOLED]
    assert [row["difference"] for row in pooled] == pytest.approx([0.1, 0.0, -0.4], abs=1e-5)
    scores = {(row["code"], row["architecture"]): row["mean_iou"] for row in found["scores"]}
    assert scores["RALLFALL", POOLED] == pytest.approx(0.65, abs=1e-5)
    assert [answer.standing for answer in judge_differences(found["differences"])] == ["good", "fair", "poor"]


def test_a_code_without_its_baseline_is_not_compared():
    counts = {"RALLFALL": (16, 99), "R8F000": (8, 0)}
    assert find_baselines("RALLFALL", counts) == []
    assert find_baselines("R8F000", counts) == []
    assert find_baselines("R000FALL", {**counts, "R000FALL": (0, 99)}) == ["R8F000"]


def test_rivals_are_read_from_any_text():
    texts = {"RALLF000L": "predicted masks", "R4FALLPL": "copy-paste and predicted masks", "R000F000P": "copy-paste"}
    assert {text: find_rivals(text) for text in texts} == texts
    assert find_rivals("R4FALL") == find_rivals("another study's") == ""


def test_copy_paste_is_a_rival_of_generated_pairs():
    counts = {"R4F000": (4, 0), "R4F000P": (4, 0), "R4FALL": (4, 9), "R4FALLP": (4, 9), "RALLF000P": (16, 0)}
    assert {code: find_baselines(code, counts) for code in counts} == {
        "R4F000": [],
        "R4F000P": ["R4F000"],
        "R4FALL": ["R4F000", "R4F000P"],
        "R4FALLP": ["R4F000", "R4F000P"],
        "RALLF000P": [],
    }
    values = {"R4F000": 0.3, "R4F000P": 0.4, "R4FALL": 0.35, "R4FALLP": 0.45}
    confusions = {(code, "a"): np.array([[make_confusion(value, 10**6)] * 3] * 2) for code, value in values.items()}
    found = summarize(confusions, {code: counts[code] for code in values}, 200)["differences"]
    assert [round(row["difference"], 3) for row in found] == [0.1, 0.05, -0.05, 0.15, 0.05]
    questions = [answer.question for answer in judge_differences(found)]
    assert len(set(questions)) == 5
    assert questions[0] == "Does copy-paste help in addition to 4 real micrographs?"
    assert questions[2] == "Are 9 generated pairs better than copy-paste, with 4 real micrographs?"


@pytest.mark.parametrize("interval", [(-0.01, 0.2), (0.0, 0.2), (-0.2, 0.0)])
def test_an_interval_that_includes_zero_is_inconclusive(interval):
    row = {"code": "RALLFALL", "baseline": "RALLF000", "num_real": 4, "num_generated": 9, "architecture": POOLED}
    (answer,) = judge_differences([{**row, "difference": 0.1, "interval": interval, "by_seed": [0.1, 0.1]}])
    assert answer.standing == "fair"
    assert answer.answer.startswith("Inconclusive")


@pytest.mark.parametrize(("seeds", "standing"), [(1, "fair"), (2, "good")])
def test_one_seed_is_inconclusive(seeds, standing):
    row = {"code": "RALLFALL", "baseline": "RALLF000", "num_real": 4, "num_generated": 9, "architecture": POOLED}
    (answer,) = judge_differences([{**row, "difference": 0.1, "interval": (0.05, 0.2), "by_seed": [0.1] * seeds}])
    assert answer.standing == standing


def test_few_seeds_and_few_micrographs_give_warnings():
    assert [line.split(":")[0] for line in find_warnings(1, 4)] == ["4 test micrographs", "1 seed"]
    assert find_warnings(3, 10) == []

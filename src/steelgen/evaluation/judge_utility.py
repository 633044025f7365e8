"""A finished utility study as a section of an evaluation."""

from __future__ import annotations

from typing import Any

from steelgen.evaluation.evidence import Judgment
from steelgen.evaluation.figures import Figure


def judge_utility(study: dict[str, Any]) -> Judgment:
    """Pooled scores and differences of a study as figures, the study as details, its warnings.

    A score has its 95 % interval over seeds; a difference that of the bootstrap, beside 0 as its floor: what data
    that change nothing would give.
    """
    num_test, seed = study["micrographs"]["test"], study["config"]["seeds"][0]
    split = study["config"]["test_split"]
    scores = {row["code"]: row for row in study["scores"]}  # the pooled row stands last
    differences = {row["code"]: row for row in study["differences"]}
    shared: dict[str, Any] = {"section": "utility", "seed": seed, "better": "higher"}
    figures = [
        Figure(
            metric=f"mIoU {code} ({row['architecture']})",
            compared=f"predicted vs true masks of {split}",
            value=row["mean_iou"],
            floor=None,
            n=(row["num_real"] + row["num_generated"], num_test),
            interval=row["interval"],
            **shared,
        )
        for code, row in scores.items()
    ]
    figures += [
        Figure(
            metric=f"mIoU {code} − {row['baseline']} ({row['architecture']})",
            compared=f"with vs without generated, on {split}",
            value=row["difference"],
            floor=0.0,
            n=(row["num_generated"], num_test),
            interval=row["interval"],
            **shared,
        )
        for code, row in differences.items()
    ]
    return figures, study, [f"utility: {line}" for line in study["warnings"]]

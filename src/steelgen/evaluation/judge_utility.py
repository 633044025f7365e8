"""The utility section: a finished utility study in an evaluation."""

from __future__ import annotations

from typing import Any

from steelgen.evaluation.figures import Figure
from steelgen.evaluation.sets import Judgment
from steelgen.evaluation.utility.words import find_words


def judge_utility(study: dict[str, Any]) -> Judgment:
    """Pooled scores and differences of a study as figures, the study as details, and its warnings.

    Scores have their 95 % interval over seeds, differences that of the bootstrap, with 0 as the floor: data without
    effect. With folds, both intervals are over folds; in classification and of instances, both are of the bootstrap.
    """
    words, folds = find_words(study), study["config"].get("folds")
    num_test = sum(study["images"]["test"]) if "images" in study else study["micrographs"]["test"]
    split = study["config"]["test_split"] if folds is None else "all folds"
    shared: dict[str, Any] = {"section": "utility", "seed": study["config"]["seeds"][0], "better": "higher"}
    # The pooled row of a code comes last.
    scores = {row["code"]: row for row in study["scores"]}
    differences = {(row["code"], row["baseline"]): row for row in study["differences"]}
    figures = [
        Figure(
            metric=f"{words.metric} {code} ({row['architecture']})",
            compared=f"{words.compared} of {split}",
            value=row[words.key],
            floor=None,
            n=(row["num_real"] + row["num_generated"], num_test),
            interval=row["interval"],
            **shared,
        )
        for code, row in scores.items()
    ]
    figures += [
        Figure(
            metric=f"{words.metric} {code} − {row['baseline']} ({row['architecture']})",
            compared=f"with vs without generated, on {split}",
            value=row["difference"],
            floor=0.0,
            n=(row["num_generated"], num_test),
            interval=row["interval"],
            **shared,
        )
        for (code, _), row in differences.items()
    ]
    return figures, study, [f"utility: {line}" for line in study["warnings"]]

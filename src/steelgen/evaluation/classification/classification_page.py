"""utility.html of a classification study, and its curve over the number of real defective images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from steelgen.evaluation.utility.metric_page import Metric, build_metric_section
from steelgen.evaluation.utility.study_page import list_curves, save_study
from steelgen.evaluation.utility.words import find_words
from steelgen.evaluation.verdict import judge_study
from steelgen.pages import render

METRICS = (
    Metric("average_precision", "average precision"),
    Metric("balanced_accuracy", "balanced accuracy"),
    Metric("accuracy", "accuracy", with_interval=False),
)
"""Columns of the tables."""
_AXIS = "real defective images"


def save_classification(output_dir: Path, result: dict[str, Any]) -> None:
    """Writes utility.html, data_fraction.png if there is a curve, and finally utility.json."""
    words = find_words(result)
    charts = list_curves(result["scores"], words.key, words.metric)
    save_study(output_dir, result, build_classification_page(result), charts, _AXIS)


def build_classification_page(result: dict[str, Any]) -> str:
    """Builds the page of a study as self-contained HTML from the content of utility.json."""
    return render(
        "study.html",
        title="Do generated defective images help?",
        result=result,
        verdict=judge_study(result),
        section=build_classification_section(result),
    )


def build_classification_section(result: dict[str, Any]) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page."""
    sound, defective = result["images"]["test"]
    return build_metric_section(
        result,
        "classification_section.html",
        METRICS,
        _AXIS,
        chance=f"{defective / max(1, sound + defective):.3f}",
        num_parents=result["num_parents"],
    )

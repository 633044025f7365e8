"""utility.html of a study of instances, and its curve over the number of real micrographs."""

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
    Metric("ap", "AP"),
    Metric("ap50", "AP50"),
    Metric("small_ap", "AP small"),
    Metric("boundary_ap", "boundary AP"),
)
"""Columns of the tables."""
_AXIS = "real micrographs"


def save_instances(output_dir: Path, result: dict[str, Any]) -> None:
    """Writes utility.html, data_fraction.png if there is a curve, and finally utility.json."""
    words = find_words(result)
    charts = list_curves(result["scores"], words.key, words.metric)
    save_study(output_dir, result, build_instance_page(result), charts, _AXIS)


def build_instance_page(result: dict[str, Any]) -> str:
    """Builds the page of a study as self-contained HTML from the content of utility.json."""
    return render(
        "study.html",
        title="Does generated data help to find instances?",
        result=result,
        verdict=judge_study(result),
        section=build_instance_section(result),
    )


def build_instance_section(result: dict[str, Any]) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page."""
    return build_metric_section(result, "instance_section.html", METRICS, _AXIS, study=result)

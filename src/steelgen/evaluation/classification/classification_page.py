"""The section of a page about a classification study."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from steelgen.evaluation.utility.metric_page import Metric, build_metric_section

METRICS = (
    Metric("average_precision", "average precision"),
    Metric("balanced_accuracy", "balanced accuracy"),
    Metric("accuracy", "accuracy", with_interval=False),
)
"""Columns of the tables."""


def build_classification_section(result: dict[str, Any]) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page."""
    sound, defective = result["images"]["test"]
    return build_metric_section(
        result,
        "classification_section.html",
        METRICS,
        chance=f"{defective / max(1, sound + defective):.3f}",
        num_parents=result["num_parents"],
    )

"""The section of a page about a study of instances."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from steelgen.evaluation.utility.metric_page import Metric, build_metric_section

METRICS = (
    Metric("ap", "AP"),
    Metric("ap50", "AP50"),
    Metric("small_ap", "AP small"),
    Metric("boundary_ap", "boundary AP"),
)
"""Columns of the tables."""


def build_instance_section(result: dict[str, Any]) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page."""
    return build_metric_section(result, "instance_section.html", METRICS, study=result)

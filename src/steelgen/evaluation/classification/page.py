"""utility.html of a classification study, and its curve over the number of real defective images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from steelgen.charts import Curve, plot_chart, plot_intervals
from steelgen.evaluation.utility.study_page import list_curves, save_study
from steelgen.evaluation.verdict import judge_study
from steelgen.pages import render

_AXIS = "real defective images"


def save_classification(output_dir: Path, result: dict[str, Any]) -> None:
    """Writes utility.html, data_fraction.png if there is a curve, and finally utility.json."""
    save_study(output_dir, result, build_classification_page(result), _list_curves(result), _AXIS)


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
    differences = [
        (f"{row['code']} − {row['baseline']}, {row['architecture']}", row["difference"], *row["interval"])
        for row in result["differences"]
        if row["interval"]
    ]
    charts = _list_curves(result)
    sound, defective = result["images"]["test"]
    section = render(
        "classification_section.html",
        differences_chart=differences
        and Markup(plot_intervals("difference in average precision with 95 % interval", differences)),
        differences=describe_gains(result["differences"]),
        scores=describe_precisions(result["scores"]),
        chance=f"{defective / max(1, sound + defective):.3f}",
        num_parents=result["num_parents"],
        legend=charts[0][2] if charts else [],
        charts=[Markup(plot_chart(name, x, curves, _AXIS)) for name, x, curves in charts],
    )
    return Markup(section)


def _list_curves(result: dict[str, Any]) -> list[tuple[str, list[float], list[Curve]]]:
    return list_curves(result["scores"], "average_precision", "average precision")


def describe_precisions(scores: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of scores."""
    columns = ["code", "real", "generated", "architecture", "average precision", "95 % interval"]
    columns += ["balanced accuracy", "95 % interval", "accuracy"]
    rows = [
        [
            *(row[key] for key in ("code", "num_real", "num_generated", "architecture")),
            f"{row['average_precision']:.3f}",
            _show_interval(row["interval"], ".3f"),
            f"{row['balanced_accuracy']:.3f}",
            _show_interval(row["balanced_accuracy_interval"], ".3f"),
            f"{row['accuracy']:.3f}",
        ]
        for row in scores
    ]
    return columns, rows


def describe_gains(differences: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of differences."""
    columns = ["code", "baseline", "architecture", "average precision", "95 % interval", "by seed"]
    columns += ["balanced accuracy", "95 % interval", "accuracy"]
    rows = [
        [
            *(row[key] for key in ("code", "baseline", "architecture")),
            f"{row['difference']:+.3f}",
            _show_interval(row["interval"], "+.3f"),
            " ".join(f"{value:+.3f}" for value in row["by_seed"]),
            f"{row['balanced_accuracy']:+.3f}",
            _show_interval(row["balanced_accuracy_interval"], "+.3f"),
            f"{row['accuracy']:+.3f}",
        ]
        for row in differences
    ]
    return columns, rows


def _show_interval(interval: Sequence[float] | None, form: str) -> str:
    return " to ".join(format(end, form) for end in interval) if interval else "–"

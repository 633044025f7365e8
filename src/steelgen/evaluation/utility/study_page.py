"""The section of a page about a study of segmentation, and the curves of all studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from steelgen.charts import Curve, plot_chart, plot_intervals
from steelgen.config.utility import find_rivals
from steelgen.evaluation.figures import CLASSES_PER_TABLE
from steelgen.pages import render, show_number

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Curve colors: real micrographs alone, then one per number of generated pairs, and the same with each rival."""


def build_utility_section(result: dict[str, Any]) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page."""
    differences = [
        (f"{row['code']} − {row['baseline']}, {row['architecture']}", row["difference"], *row["interval"])
        for row in result["differences"]
    ]
    charts = list_curves(result["scores"])
    section = render(
        "study_section.html",
        differences_chart=differences and Markup(plot_intervals("difference in mIoU with 95 % interval", differences)),
        folds=any(row.get("by_fold") for row in result["scores"]),
        differences=describe_differences(result["differences"]),
        classes=_split_classes(result.get("by_class", []), result["class_names"]),
        gaps=describe_gaps(result.get("gaps", [])),
        scores=_split_scores(result["scores"], result["class_names"]),
        legend=charts[0][2] if charts else [],
        charts=[Markup(plot_chart(name, x, curves, "real micrographs")) for name, x, curves in charts],
    )
    return Markup(section)


def list_curves(
    scores: Sequence[dict[str, Any]], key: str = "mean_iou", metric: str = "mIoU"
) -> list[tuple[str, list[float], list[Curve]]]:
    """A metric over the number of real micrographs: a chart per architecture, a curve per number of generated pairs,
    and the same with each rival.

    Args:
        scores: rows of utility.json.
        key: the metric's field in a row.
        metric: its name in the titles.

    Returns:
        Title, x values and curves of each chart; no charts for fewer than two numbers of micrographs.
    """
    real_counts = sorted({float(row["num_real"]) for row in scores if row["num_real"]})
    if len(real_counts) < 2:
        return []
    arms = sorted({_find_arm(row) for row in scores if row["num_real"]})
    charts = []
    for architecture in dict.fromkeys(row["architecture"] for row in scores):
        found = {(row["num_real"], _find_arm(row)): row for row in scores if row["architecture"] == architecture}
        curves = []
        for number, arm in enumerate(arms):
            rows = [found.get((real_count, arm)) for real_count in real_counts]
            ends = [(row and row["interval"]) or (math.nan, math.nan) for row in rows]
            curves.append(
                Curve(
                    _name_arm(*arm),
                    [row[key] if row else math.nan for row in rows],
                    _COLORS[number % len(_COLORS)],
                    dashed=arm[1] == 0,
                    spread=([low for low, _ in ends], [high for _, high in ends]),
                )
            )
        charts.append((f"{metric}, {architecture}", real_counts, curves))
    return charts


def _find_arm(row: dict[str, Any]) -> tuple[str, int]:
    """The rivals of generated pairs in a training set, and the number of pairs."""
    return find_rivals(row["code"]), row["num_generated"]


def _name_arm(rivals: str, num_generated: int) -> str:
    parts = [f"+ {num_generated} generated"] * (num_generated > 0) + [f"+ {rivals}"] * bool(rivals)
    return " ".join(parts) or "real alone"


def describe_differences(differences: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of differences."""
    columns = ["code", "baseline", "architecture", "difference", "95 % interval", "by seed"]
    with_folds = any(row.get("by_fold") for row in differences)
    rows = [
        [
            row["code"],
            row["baseline"],
            row["architecture"],
            f"{row['difference']:+.4f}",
            " to ".join(f"{end:+.4f}" for end in row["interval"]),
            " ".join(f"{value:+.3f}" for value in row["by_seed"]),
            *([" ".join(f"{value:+.3f}" for value in row.get("by_fold") or ())] if with_folds else []),
        ]
        for row in differences
    ]
    return [*columns, "by fold"] if with_folds else columns, rows


def describe_gaps(gaps: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of gaps closed."""
    columns = ["code", "architecture", "gap", "from", "to", "closed", "95 % interval"]
    rows = [
        [
            row["code"],
            row["architecture"],
            f"{row['gap']:+.4f}",
            row["baseline"],
            row["full"],
            "–" if row["closed"] is None else f"{100 * row['closed']:.0f} %",
            " to ".join(f"{100 * end:.0f} %" for end in row["interval"]) if row["interval"] else "–",
        ]
        for row in gaps
    ]
    return columns, rows


def describe_scores(scores: Sequence[dict[str, Any]], class_names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of scores."""
    columns = ["code", "real", "generated", "architecture", "mIoU", "95 % interval", "per image", *class_names]
    rows = [
        [
            row["code"],
            row["num_real"],
            row["num_generated"],
            row["architecture"],
            f"{row['mean_iou']:.4f}",
            " to ".join(f"{end:.4f}" for end in row["interval"]) if row["interval"] else "–",
            f"{row['image_iou']:.4f}",
            *(show_number(value) for value in row["class_iou"]),
        ]
        for row in scores
    ]
    return columns, rows


def _split_classes(
    rows: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> list[tuple[list[str], list[list[Any]]]]:
    """Tables of differences in class IoU and boundary F1, with few classes per table."""
    tables = []
    for start in range(0, len(class_names) if rows else 0, CLASSES_PER_TABLE):
        shown = slice(start, start + CLASSES_PER_TABLE)
        titles = ["code", "baseline", "architecture", *(f"IoU {name}" for name in class_names[shown]), "boundary F1"]
        cells = [
            [
                *(row[key] for key in ("code", "baseline", "architecture")),
                *(
                    "–" if value is None else f"{value:+.3f}"
                    for value in [*row["class_iou"][shown], row["boundary_f1"]]
                ),
            ]
            for row in rows
        ]
        tables.append((titles, cells))
    return tables


def _split_scores(
    scores: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> list[tuple[list[str], list[list[Any]], int]]:
    """Tables of mIoU and of class IoU, with few classes per table, since names may be long.

    Returns:
        Column titles, rows and the index of the first numeric column of each table.
    """
    columns, rows = describe_scores(scores, class_names)
    first = len(columns) - len(class_names)
    tables = [(columns[:first], [row[:first] for row in rows], 4)]
    for start in range(first, len(columns), CLASSES_PER_TABLE):
        shown = slice(start, start + CLASSES_PER_TABLE)
        titles = ["code", "architecture", *(f"IoU {name}" for name in columns[shown])]
        cells = [[score["code"], score["architecture"], *row[shown]] for score, row in zip(scores, rows, strict=True)]
        tables.append((titles, cells, 2))
    return tables

"""The section of utility.html for studies with rows of `summarize_resampled`: tables of metrics, intervals, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from steelgen.charts import plot_chart, plot_intervals
from steelgen.evaluation.utility.study_page import list_curves
from steelgen.evaluation.utility.words import find_words
from steelgen.pages import render


class Metric(NamedTuple):
    """A column of the tables; the first one of a study decides."""

    key: str
    """Field in a row of scores."""
    name: str
    with_interval: bool = True


def build_metric_section(result: dict[str, Any], template: str, metrics: Sequence[Metric], **more: Any) -> Markup:
    """Builds the differences, scores and curves of a study as a section of a page.

    Args:
        result: content of utility.json.
        template: the section's template.
        metrics: columns of its tables.
        more: further variables of the template.
    """
    differences = [
        (f"{row['code']} − {row['baseline']}, {row['architecture']}", row["difference"], *row["interval"])
        for row in result["differences"]
        if row["interval"]
    ]
    words = find_words(result)
    charts = list_curves(result["scores"], words.key, words.metric)
    section = render(
        template,
        differences_chart=differences
        and Markup(plot_intervals(f"difference in {words.metric} with 95 % interval", differences)),
        differences=tabulate_gains(result["differences"], metrics),
        scores=tabulate_scores(result["scores"], metrics),
        legend=charts[0][2] if charts else [],
        charts=[Markup(plot_chart(name, x, curves, words.axis)) for name, x, curves in charts],
        **more,
    )
    return Markup(section)


def tabulate_scores(scores: Sequence[dict[str, Any]], metrics: Sequence[Metric]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of scores."""
    columns = ["code", "real", "generated", "architecture"]
    for metric in metrics:
        columns += [metric.name, "95 % interval"] if metric.with_interval else [metric.name]
    rows = []
    for row in scores:
        cells = [row[key] for key in ("code", "num_real", "num_generated", "architecture")]
        for number, metric in enumerate(metrics):
            cells.append(_show(row[metric.key], ".3f"))
            if metric.with_interval:
                cells.append(_show_interval(row["interval" if number == 0 else f"{metric.key}_interval"], ".3f"))
        rows.append(cells)
    return columns, rows


def tabulate_gains(
    differences: Sequence[dict[str, Any]], metrics: Sequence[Metric]
) -> tuple[list[str], list[list[Any]]]:
    """Column titles and rows of the table of differences."""
    decisive, *others = metrics
    columns = ["code", "baseline", "architecture", decisive.name, "95 % interval", "by seed"]
    for metric in others:
        columns += [metric.name, "95 % interval"] if metric.with_interval else [metric.name]
    rows = []
    for row in differences:
        cells = [row[key] for key in ("code", "baseline", "architecture")]
        cells += [_show(row["difference"], "+.3f"), _show_interval(row["interval"], "+.3f")]
        cells.append(" ".join(_show(value, "+.3f") for value in row["by_seed"]))
        for metric in others:
            cells.append(_show(row[metric.key], "+.3f"))
            if metric.with_interval:
                cells.append(_show_interval(row[f"{metric.key}_interval"], "+.3f"))
        rows.append(cells)
    return columns, rows


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _show_interval(interval: Sequence[float] | None, form: str) -> str:
    return " to ".join(format(end, form) for end in interval) if interval else "–"

"""Markdown tables, and how figures are shown in them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

Results = dict[str, Any]
Lines = list[str]


def build_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Lines:
    """A Markdown table; the first `texts` columns are left-aligned, the numbers right-aligned."""
    rule = "---|" * texts + "--:|" * (len(columns) - texts)
    return [f"| {' | '.join(columns)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def show_number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def show_spread(summary: dict[str, float]) -> str:
    median = show_number(summary["median"])
    if summary["min"] == summary["max"]:
        return median
    return f"{median} ({show_number(summary['min'])} to {show_number(summary['max'])})"


def show_mean_and_range(values: Sequence[float], digits: int = 1) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"

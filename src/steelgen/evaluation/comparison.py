"""Comparison of several evaluations: a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelgen.errors import InputError
from steelgen.evaluation.results import load_evaluation
from steelgen.pages import render


def compare(folders: Sequence[Path]) -> tuple[list[str], list[list[Any]], list[str]]:
    """Puts the figures of several evaluations, output folders or their evaluation.json, into one table.

    Returns:
        Column titles: metric, compared, one per evaluation, floor (of the first), better; rows, with figures as in
        evaluation.json, or None where an evaluation has none; a sentence for each difference between the evaluations
        that makes their figures incomparable.

    Raises:
        InputError: if there are fewer than two, or one of them is missing or damaged.
    """
    if len(folders) < 2:
        raise InputError(f"compare: {len(folders)} evaluation given; name two or more")
    results = [load_evaluation(folder) for folder in folders]
    tables = [{(figure["metric"], figure["compared"]): figure for figure in result["figures"]} for result in results]
    rows: list[list[Any]] = []
    for key in dict.fromkeys(key for table in tables for key in table):
        figures = [table.get(key) for table in tables]
        first = next(figure for figure in figures if figure is not None)
        rows.append([*key, *figures, first["floor"], first["better"]])
    columns = ["metric", "compared", *_short_names(folders), "floor", "better"]
    return columns, rows, _find_differences(folders, results)


def build_comparison(folders: Sequence[Path]) -> str:
    """Builds a self-contained HTML page with every verdict and all figures; the best value of a row is bold."""
    columns, rows, differences = compare(folders)
    shown = [
        (metric, compared, figures, _find_best(figures, better), floor, better)
        for metric, compared, *figures, floor, better in rows
    ]
    verdicts = [load_evaluation(folder)["verdict"] for folder in folders]
    return render(
        "comparison.html",
        title="Comparison of evaluations",
        differences=differences,
        verdicts=list(zip(columns[2:-2], verdicts, strict=True)),
        rows=shown,
    )


def _find_best(figures: Sequence[dict[str, Any] | None], better: str) -> float | None:
    known = [figure["value"] for figure in figures if figure is not None and figure["value"] is not None]
    if better == "near floor" or not known:
        return None
    return min(known) if better == "lower" else max(known)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole paths where last parts are the same."""
    names = [folder.parent.name if folder.suffix == ".json" else folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _find_differences(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> list[str]:
    keys = ("dataset", "held_out_split", "train_split", "seed", "segmenter", "microstructure", "memorization")
    described = [
        {key: result["config"].get(key) for key in keys}
        | {"geometry": result["geometry"], "generated images": result["sets"]["generated"]["count"]}
        for result in results
    ]
    return [
        f"{folder}: {key} {value}, but {described[0][key]} in {folders[0]}"
        for folder, values in zip(folders[1:], described[1:], strict=True)
        for key, value in values.items()
        if value != described[0][key]
    ]

"""Several evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelgen.errors import InputError
from steelgen.evaluation.results import load_evaluation
from steelgen.pages import render


def compare(folders: Sequence[Path]) -> tuple[list[str], list[list[Any]], list[str]]:
    """Puts the figures of several evaluations into one table.

    Args:
        folders: output folders of `evaluate`, or their evaluation.json.

    Returns:
        Column titles: metric, compared, one per evaluation, floor (of the first); rows, with figures as in
        evaluation.json or None where an evaluation lacks one; and a sentence for each way in which the evaluations are
        not alike, so that figures must not be compared.

    Raises:
        InputError: if there are fewer than two, or one of them is missing or damaged.
    """
    if len(folders) < 2:
        raise InputError(f"compare: {len(folders)} evaluation; name two or more")
    results = [load_evaluation(folder) for folder in folders]
    tables = [{(figure["metric"], figure["compared"]): figure for figure in result["figures"]} for result in results]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = []
    for key in keys:
        figures = [table.get(key) for table in tables]
        floor = next(figure["floor"] for figure in figures if figure is not None)
        better = next(figure["better"] for figure in figures if figure is not None)
        rows.append([*key, *figures, floor, better])
    columns = ["metric", "compared", *_short_names(folders), "floor", "better"]
    return columns, rows, _find_differences(folders, results)


def build_comparison(folders: Sequence[Path]) -> str:
    """The comparison as a self-contained HTML page, with each run's verdict; the best value of a row is bold."""
    columns, rows, differences = compare(folders)
    shown = [
        {
            "metric": metric,
            "compared": compared,
            "figures": figures,
            "best": _find_best([figure and figure["value"] for figure in figures], better),
            "floor": floor,
            "better": better,
        }
        for metric, compared, *figures, floor, better in rows
    ]
    verdicts = [load_evaluation(folder)["verdict"] for folder in folders]
    return render(
        "comparison.html",
        title="Evaluations side by side",
        differences=differences,
        verdicts=list(zip(columns[2:-2], verdicts, strict=True)),
        rows=shown,
    )


def _find_best(values: Sequence[float | None], better: str) -> float | None:
    known = [value for value in values if value is not None]
    if better == "near floor" or not known:
        return None
    return min(known) if better == "lower" else max(known)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole path where the last parts are the same."""
    names = [folder.parent.name if folder.suffix == ".json" else folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _find_differences(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> list[str]:
    differences = []
    first = results[0]
    for folder, result in zip(folders[1:], results[1:], strict=True):
        for key in ("dataset", "held_out_split", "train_split", "seed", "segmenter", "microstructure", "memorization"):
            value, expected = result["config"].get(key), first["config"].get(key)
            if value != expected:
                differences.append(f"{folder}: {key} {value}, but {folders[0]}: {expected}")
        if result["geometry"] != first["geometry"]:
            differences.append(f"{folder}: geometry {result['geometry']}, but {folders[0]}: {first['geometry']}")
        counts = [each["sets"]["generated"]["count"] for each in (result, first)]
        if counts[0] != counts[1]:
            differences.append(f"{folder}: {counts[0]} generated images, but {folders[0]}: {counts[1]}")
    return differences

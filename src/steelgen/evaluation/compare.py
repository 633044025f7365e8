"""Several evaluations side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelgen.errors import InputError
from steelgen.evaluation.page import build_page, build_verdict, show_number, show_value
from steelgen.files import load_json


def compare(folders: Sequence[Path]) -> tuple[list[str], list[list[Any]], list[str]]:
    """Puts the figures of several evaluations into one table.

    Args:
        folders: output folders of `evaluate`, or their evaluation.json.

    Returns:
        Column titles: metric, compared, one per evaluation, floor (of the first); rows, with figures as in
        evaluation.json or None where an evaluation lacks one; and a sentence for each way in which the evaluations are
        not alike, so that figures must not be compared.

    Raises:
        InputError: if there are fewer than two, or one holds no evaluation.
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


def load_evaluation(folder: Path) -> dict[str, Any]:
    """Reads evaluation.json of an output folder of `evaluate`.

    Raises:
        InputError: if it is missing or holds no figures.
    """
    path = folder if folder.suffix == ".json" else folder / "evaluation.json"
    result = load_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("figures"), list):
        raise InputError(f"{path}: holds no evaluation (no figures)")
    return result


def build_comparison(folders: Sequence[Path]) -> str:
    """The comparison as a self-contained HTML page, with each run's verdict; the best value of a row is bold."""
    columns, rows, differences = compare(folders)
    body = ["<h1>Evaluations side by side</h1>"]
    body += [f"<p><b>Not alike:</b> {html.escape(line)}</p>" for line in differences]
    for name, folder in zip(columns[2:-2], folders, strict=True):
        body += [f"<h2>{html.escape(name)}</h2>", build_verdict(load_evaluation(folder)["verdict"])]
    numeric = columns[2:-1]
    head = "".join(f"<th{' class=n' if name in numeric else ''}>{html.escape(name)}</th>" for name in columns)
    lines = []
    for metric, compared, *figures, floor, better in rows:
        best = _find_best([figure and figure["value"] for figure in figures], better)
        cells = "".join(f'<td class="n">{_show_cell(figure, best)}</td>' for figure in figures)
        lines.append(
            f"<tr><td>{html.escape(metric)}</td><td>{html.escape(compared)}</td>{cells}"
            f'<td class="n">{show_number(floor)}</td><td>{better}</td></tr>'
        )
    body.append(f"<h2>Figures</h2><table><thead><tr>{head}</tr></thead>{''.join(lines)}</table>")
    return build_page("Evaluations side by side", body)


def _show_cell(figure: dict[str, Any] | None, best: float | None) -> str:
    if figure is None or figure["value"] is None:
        return show_number(None)
    return f"<b>{show_value(figure)}</b>" if figure["value"] == best else show_value(figure)


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
        for key in ("dataset", "held_out_split", "train_split", "seed", "segmenter", "microstructure", "memorisation"):
            if result["config"][key] != first["config"][key]:
                differences.append(f"{folder}: {key} {result['config'][key]}, but {folders[0]}: {first['config'][key]}")
        if result["geometry"] != first["geometry"]:
            differences.append(f"{folder}: geometry {result['geometry']}, but {folders[0]}: {first['geometry']}")
        counts = [each["sets"]["generated"]["count"] for each in (result, first)]
        if counts[0] != counts[1]:
            differences.append(f"{folder}: {counts[0]} generated images, but {folders[0]}: {counts[1]}")
    return differences

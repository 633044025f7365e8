"""The table of a comparison of generators: for each purpose the figure that decides, and which generator is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from steelgen.pages import render


class _Purpose(NamedTuple):
    purpose: str
    section: str
    metric: str
    """What the name of the figure contains."""


_PURPOSES = (
    _Purpose("images like real ones", "fidelity", "KID-"),
    _Purpose("variety of real micrographs", "fidelity", "recall-"),
    _Purpose("masks that are obeyed", "faithfulness", "mIoU"),
    _Purpose("no copies", "memorization", "copies"),
    _Purpose("training of segmenters", "utility", " − "),
)


def compare_figures(families: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the figures that decide into one row per purpose.

    Args:
        families: name, images_per_second and `figures`, as in evaluation.json, of each generator.

    Returns:
        JSON values: purpose, metric, better, floor (of the first generator that has the figure), `figures` by name, and
        the names of the best; none if fewer than two generators have the figure. Speed comes last.
    """
    rows = []
    for wanted in _PURPOSES:
        figures = {family["name"]: _find(family["figures"], wanted) for family in families}
        known = [figure for figure in figures.values() if figure is not None]
        if known:
            first = known[0]
            shared = {key: first[key] for key in ("metric", "compared", "better", "floor")}
            rows.append({"purpose": wanted.purpose, **shared, "figures": figures})
    speeds = {family["name"]: {"value": family["images_per_second"], "interval": None} for family in families}
    shared = {"metric": "images per second", "compared": "one batch", "better": "higher", "floor": None}
    rows.append({"purpose": "many images", **shared, "figures": speeds})
    return [{**row, "best": _find_best(row["figures"], row["better"])} for row in rows]


def build_families_page(result: dict[str, Any]) -> str:
    """Builds the page of a comparison as self-contained HTML from the content of families.json."""
    trainings = [
        [row["name"], row["kind"], row["steps"], f"{row['training_minutes']:.1f}", row["parameters"]]
        for row in result["families"]
    ]
    return render("families.html", title="Generators side by side", result=result, trainings=trainings)


def _find(figures: Sequence[dict[str, Any]], wanted: _Purpose) -> dict[str, Any] | None:
    return next(
        (
            figure
            for figure in figures
            if figure["section"] == wanted.section and wanted.metric in figure["metric"] and figure["value"] is not None
        ),
        None,
    )


def _find_best(figures: dict[str, dict[str, Any] | None], better: str) -> list[str]:
    """Names of the generators with the best value, several if they are equal."""
    values = {name: figure["value"] for name, figure in figures.items() if figure is not None}
    if len(values) < 2:
        return []
    best = min(values.values()) if better == "lower" else max(values.values())
    return [name for name, value in values.items() if value == best]

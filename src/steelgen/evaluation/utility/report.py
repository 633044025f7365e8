"""utility.html, utility.json and the data-fraction curve: what a study says, on one page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steelgen.data.images import save_image
from steelgen.evaluation.page import CLASSES_ABREAST, build_lines, build_page, build_table, build_verdict, show_number
from steelgen.evaluation.plots import Curve, draw_chart, draw_intervals, paint_chart
from steelgen.evaluation.utility.cells import RESULT_FILE
from steelgen.evaluation.verdict import judge_differences
from steelgen.files import new_file, save_json

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Of the curves: real micrographs alone, then one a number of generated pairs."""


def save_report(output_dir: Path, result: dict[str, Any]) -> None:
    """Writes utility.html, data_fraction.png where there is a curve, and utility.json as the last."""
    charts = list_curves(result["scores"])
    if charts:
        pictures = [paint_chart(name, x, curves, "real micrographs") for name, x, curves in charts]
        save_image(output_dir / "data_fraction.png", np.hstack(pictures))
    with new_file(output_dir / "utility.html") as working:
        working.write_text(build_utility_page(result), encoding="utf-8")
    save_json(output_dir / RESULT_FILE, result)


def build_utility_page(result: dict[str, Any]) -> str:
    """The page of a study.

    Args:
        result: the content of utility.json.

    Returns:
        HTML without anything from outside.
    """
    config = result["config"]
    body = [
        "<h1>Does generated data help?</h1>",
        f'<p class="muted">{html.escape(_describe(result))}</p>',
        build_verdict([answer.model_dump() for answer in judge_differences(result["differences"])]),
        build_lines("Warnings", result["warnings"]),
        build_lines("Notes", result["notes"]),
        build_utility_section(result),
        "<h2>How it was made</h2>",
        f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>",
        f"<pre>{html.escape(json.dumps(result['environment'], indent=2))}</pre>",
    ]
    return build_page("Does generated data help?", body)


def build_utility_section(result: dict[str, Any]) -> str:
    """Differences, scores and curves of a study, as a part of a page."""
    parts = []
    if result["differences"]:
        rows = [
            (f"{row['code']} − {row['baseline']}, {row['architecture']}", row["difference"], *row["interval"])
            for row in result["differences"]
        ]
        parts += [
            "<h2>Difference to real micrographs alone</h2>",
            '<p class="muted">Mean over seeds of the difference in mIoU, paired by seed: the same micrographs, first '
            "weights and order of real crops. The interval comes from drawing seeds and test micrographs again, both "
            "at once and alike for the two codes. Only an interval that leaves 0 out says anything.</p>",
            draw_intervals("difference in mIoU with its 95 % interval", rows),
            build_table(*describe_differences(result["differences"]), first_number=3),
        ]
    parts += [
        "<h2>mIoU on held-out real micrographs</h2>",
        '<p class="muted">mIoU from one confusion matrix over all test micrographs, mean over seeds with the 95 % '
        "interval of Student's t; then the mean of the micrographs' own mIoU, and the IoU of each class.</p>",
        _build_scores(result["scores"], result["class_names"]),
    ]
    charts = list_curves(result["scores"])
    if charts:
        drawn = "".join(draw_chart(name, x, curves, "real micrographs") for name, x, curves in charts)
        legend = " ".join(f'<b style="color:{curve.color}">{html.escape(curve.name)}</b>' for curve in charts[0][2])
        parts += ["<h2>Data-fraction curve</h2>", f"<p>{legend}</p>", f'<div class="charts">{drawn}</div>']
    return "".join(parts)


def list_curves(scores: Sequence[dict[str, Any]]) -> list[tuple[str, list[float], list[Curve]]]:
    """mIoU over the number of real micrographs, one chart an architecture, one curve a number of generated pairs.

    Returns:
        Title, positions and curves of each chart; none where there are fewer than two numbers of micrographs.
    """
    amounts = sorted({row["num_real"] for row in scores if row["num_real"]})
    if len(amounts) < 2:
        return []
    added = sorted({row["num_generated"] for row in scores if row["num_real"]})
    charts = []
    for architecture in dict.fromkeys(row["architecture"] for row in scores):
        found = {(row["num_real"], row["num_generated"]): row for row in scores if row["architecture"] == architecture}
        curves = []
        for number, count in enumerate(added):
            rows = [found.get((amount, count)) for amount in amounts]
            name = f"+ {count} generated" if count else "real alone"
            ends = [(row and row["interval"]) or (math.nan, math.nan) for row in rows]
            curves.append(
                Curve(
                    name,
                    [row["mean_iou"] if row else math.nan for row in rows],
                    _COLORS[number % len(_COLORS)],
                    dashed=count == 0,
                    spread=([low for low, _ in ends], [high for _, high in ends]),
                )
            )
        charts.append((f"mIoU, {architecture}", [float(amount) for amount in amounts], curves))
    return charts


def describe_differences(differences: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The table of differences: column titles and rows."""
    columns = ["code", "baseline", "architecture", "difference", "95 % interval", "by seed"]
    rows = [
        [
            row["code"],
            row["baseline"],
            row["architecture"],
            f"{row['difference']:+.4f}",
            " … ".join(f"{end:+.4f}" for end in row["interval"]),
            " ".join(f"{value:+.3f}" for value in row["by_seed"]),
        ]
        for row in differences
    ]
    return columns, rows


def describe_scores(scores: Sequence[dict[str, Any]], class_names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """The table of scores: column titles and rows."""
    columns = ["code", "real", "generated", "architecture", "mIoU", "95 % interval", "per image", *class_names]
    rows = [
        [
            row["code"],
            row["num_real"],
            row["num_generated"],
            row["architecture"],
            f"{row['mean_iou']:.4f}",
            " … ".join(f"{end:.4f}" for end in row["interval"]) if row["interval"] else "–",
            f"{row['image_iou']:.4f}",
            *(show_number(value) for value in row["class_iou"]),
        ]
        for row in scores
    ]
    return columns, rows


def _describe(result: dict[str, Any]) -> str:
    config, counts, seeds = result["config"], result["micrographs"], result["config"]["seeds"]
    return (
        f"{len(config['codes'])} codes × {len(config['architectures'])} architectures × {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}), each trained for {config['training']['steps']} steps; "
        f"{counts['train']} training, {counts['val']} validation and {counts['test']} test micrographs of "
        f"{config['dataset']}, {result['num_generated']} generated pairs of {config['generated']}; "
        f"{result['geometry']}; steelgen {result['steelgen']}."
    )


def _build_scores(scores: Sequence[dict[str, Any]], class_names: Sequence[str]) -> str:
    """A table of mIoU, then the classes, a few abreast: names may be long."""
    columns, rows = describe_scores(scores, class_names)
    first = len(columns) - len(class_names)
    parts = [build_table(columns[:first], [row[:first] for row in rows], first_number=4)]
    for start in range(first, len(columns), CLASSES_ABREAST):
        shown = slice(start, start + CLASSES_ABREAST)
        titles = ["code", "architecture", *(f"IoU {name}" for name in columns[shown])]
        cells = [[score["code"], score["architecture"], *row[shown]] for score, row in zip(scores, rows, strict=True)]
        parts.append(build_table(titles, cells, first_number=2))
    return "".join(parts)

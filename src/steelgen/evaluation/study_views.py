"""How finished studies of each task are shown: utility.html, reports, and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from steelgen.charts import plot_pixels
from steelgen.data.images import save_image
from steelgen.evaluation.classification.classification_page import METRICS as CLASSIFICATION_METRICS
from steelgen.evaluation.classification.classification_page import build_classification_section
from steelgen.evaluation.instances.instance_page import METRICS as INSTANCE_METRICS
from steelgen.evaluation.instances.instance_page import build_instance_section
from steelgen.evaluation.utility.metric_page import tabulate_gains, tabulate_scores
from steelgen.evaluation.utility.results import RESULT_FILE
from steelgen.evaluation.utility.study_page import (
    build_utility_section,
    describe_differences,
    describe_scores,
    list_curves,
)
from steelgen.evaluation.utility.words import find_words, read_task
from steelgen.evaluation.verdict import judge_study
from steelgen.files import new_file, save_json
from steelgen.pages import render

_Table = tuple[list[str], list[list[Any]]]


class StudyView(NamedTuple):
    """Functions of the content of a utility.json."""

    section: Callable[[dict[str, Any]], Markup]
    """A section of a page."""
    title: Callable[[dict[str, Any]], str]
    """Title of the table of scores."""
    scores: Callable[[dict[str, Any]], _Table]
    """Column titles and rows."""
    differences: Callable[[dict[str, Any]], _Table]


def _title_segmentation(result: dict[str, Any]) -> str:
    config = result["config"]
    where = f"of {config['test_split']}" if config["folds"] is None else f"in {len(result['folds'])} folds"
    return f"mIoU on {result['micrographs']['test']} micrographs {where}"


def _title_classification(result: dict[str, Any]) -> str:
    sound, defective = result["images"]["test"]
    return f"{sound} sound and {defective} defective images of {result['config']['test_split']}"


def _title_instances(result: dict[str, Any]) -> str:
    where = f"{result['micrographs']['test']} micrographs of {result['config']['test_split']}"
    return f"COCO AP on {result['num_instances']} instances in {where}"


_VIEWS = {
    "segment": StudyView(
        build_utility_section,
        _title_segmentation,
        lambda result: describe_scores(result["scores"], result["class_names"]),
        lambda result: describe_differences(result["differences"]),
    ),
    "classify": StudyView(
        build_classification_section,
        _title_classification,
        lambda result: tabulate_scores(result["scores"], CLASSIFICATION_METRICS),
        lambda result: tabulate_gains(result["differences"], CLASSIFICATION_METRICS),
    ),
    "instance": StudyView(
        build_instance_section,
        _title_instances,
        lambda result: tabulate_scores(result["scores"], INSTANCE_METRICS),
        lambda result: tabulate_gains(result["differences"], INSTANCE_METRICS),
    ),
}


def find_view(study: dict[str, Any]) -> StudyView:
    """How to show a study, from the content of its utility.json."""
    return _VIEWS[read_task(study)]


def build_study_page(result: dict[str, Any]) -> str:
    """Builds the page of a study as self-contained HTML from the content of utility.json."""
    return render(
        "study.html",
        title=find_words(result).title,
        result=result,
        verdict=judge_study(result),
        section=find_view(result).section(result),
    )


def save_study(output_dir: Path, result: dict[str, Any]) -> None:
    """Writes utility.html, data_fraction.png if there is a curve, and finally utility.json."""
    words = find_words(result)
    if charts := list_curves(result["scores"], words.key, words.metric):
        images = [plot_pixels(name, x, curves, words.axis) for name, x, curves in charts]
        save_image(output_dir / "data_fraction.png", np.hstack(images))
    with new_file(output_dir / "utility.html") as working:
        working.write_text(build_study_page(result), encoding="utf-8")
    save_json(output_dir / RESULT_FILE, result)

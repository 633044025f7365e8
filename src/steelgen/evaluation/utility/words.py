"""What the studies of each task measure and add, for tables, questions and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class StudyWords(NamedTuple):
    """What a study measures and adds."""

    key: str
    """Field of the deciding metric in a row of scores."""
    metric: str
    compared: str
    """The two sets that the metric compares."""
    tested: str
    added: str
    given: str
    real: str
    """What a code without generated data trains on."""
    undefined: str
    """Why a difference may have no interval."""
    title: str
    """Title of the page."""
    axis: str
    """What the x axis of the curves counts."""


WORDS = {
    "segment": StudyWords(
        key="mean_iou",
        metric="mIoU",
        compared="predicted vs true masks",
        tested="held-out real micrographs",
        added="generated pairs",
        given="real micrographs",
        real="micrographs",
        undefined="",
        title="Does generated data help?",
        axis="real micrographs",
    ),
    "instance": StudyWords(
        key="ap",
        metric="AP",
        compared="predicted vs true instances",
        tested="held-out real micrographs",
        added="generated pairs",
        given="real micrographs",
        real="micrographs",
        undefined="the test has too few micrographs with instances for an interval",
        title="Does generated data help to find instances?",
        axis="real micrographs",
    ),
    "classify": StudyWords(
        key="average_precision",
        metric="average precision",
        compared="sound vs defective images",
        tested="held-out real images",
        added="generated defective images",
        given="real defective images",
        real="images",
        undefined="the test has too few defective micrographs for an interval",
        title="Do generated defective images help?",
        axis="real defective images",
    ),
}
"""By the task of a study."""


def read_task(study: Mapping[str, Any]) -> str:
    """The task of the content of a utility.json; that of segmentation has none."""
    return str(study.get("task", "segment"))


def find_words(study: Mapping[str, Any]) -> StudyWords:
    """The words of a study, from the content of its utility.json."""
    return WORDS[read_task(study)]

"""Reading of the JSON files of a utility study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from steelgen.evaluation.utility.words import read_task
from steelgen.files import Record, load_json, load_record, parse_record

STUDY_FILE = "study.json"
"""Config and data hashes, written when a study starts."""
RESULT_FILE = "utility.json"
"""Result, written when all cells are finished."""

_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Pixels = Annotated[int, Field(ge=0, lt=2**53)]
_Iou = Annotated[float, Field(ge=0, le=1)]
_Change = Annotated[float, Field(ge=-1, le=1)]
_Interval = tuple[Annotated[float, Field(ge=-100, le=100)], Annotated[float, Field(ge=-100, le=100)]]
"""Not limited to [0, 1]: Student's t interval of two seeds is very wide."""


class StudyStart(Record):
    """The content of study.json."""

    study: str
    config: dict[str, Any]
    inputs: dict[str, Any] | None = None
    """Hashes of the data; missing from studies of older versions."""
    earlier: list[str] = []
    """Hashes of the study before allowed changes."""
    folds: list[str] = []
    """Names of the folds, so that cells can be listed without the dataset."""


class _Test(Record):
    micrographs: list[str]
    confusion: list[list[list[_Pixels]]] = Field(min_length=1)
    """(N, C, C)."""
    boundaries: list[list[list[_Pixels]]] | None = None
    """(N, 4, C), see `count_boundaries`; missing from cells of older versions."""

    @model_validator(mode="after")
    def _check_shape(self) -> _Test:
        size = len(self.confusion[0])
        if not size or any(len(matrix) != size or any(len(row) != size for row in matrix) for matrix in self.confusion):
            raise ValueError("confusion: must be square matrices of one size")
        return self


class CellStart(Record):
    """What the files in cells/ of all tasks contain."""

    study: str
    code: str
    architecture: str
    seed: int
    fold: str | None = None
    seconds: float = Field(ge=0)


CellT = TypeVar("CellT", bound=CellStart)


class CellResult(CellStart):
    """The content of a file in cells/ of segmentation."""

    test: _Test


class _ClassifierTest(Record):
    images: list[str]
    labels: list[Literal[0, 1]]
    scores: list[float] = Field(min_length=1)
    """Logits, positive for defective (label 1)."""

    @model_validator(mode="after")
    def _check_lengths(self) -> _ClassifierTest:
        if not len(self.images) == len(self.labels) == len(self.scores):
            raise ValueError("images, labels and scores: must have one value per image")
        return self


class ClassifierCell(CellStart):
    """The content of a file in cells/ of classification."""

    test: _ClassifierTest


class _InstanceTest(Record):
    micrographs: list[str]


class InstanceCell(CellStart):
    """The content of a file in cells/ of instance segmentation, without the predicted instances."""

    test: _InstanceTest


class _Row(Record):
    """A row of scores or differences."""

    code: str
    architecture: str
    num_real: _Count
    num_generated: _Count


class _Score(_Row):
    mean_iou: _Iou
    image_iou: _Iou
    interval: _Interval | None
    class_iou: list[_Iou | None]


class _Difference(_Row):
    baseline: str
    difference: _Change
    interval: _Interval
    by_seed: list[_Change]
    by_fold: list[_Change] | None = None


class _Gap(Record):
    code: str
    baseline: str
    full: str
    architecture: str
    gap: _Change
    closed: float | None
    interval: tuple[float, float] | None


class _ByClass(Record):
    code: str
    baseline: str
    architecture: str
    class_iou: list[_Change | None]
    boundary_f1: _Change | None


class _Accuracies(_Row):
    """Accuracies of a row of classification, or their differences."""

    accuracy: _Change
    accuracy_interval: _Interval | None
    balanced_accuracy: _Change
    balanced_accuracy_interval: _Interval | None
    interval: _Interval | None
    by_seed: list[_Change]


class _ClassifierScore(_Accuracies):
    average_precision: _Iou


class _ClassifierDifference(_Accuracies):
    baseline: str
    difference: _Change


class _InstanceMetrics(_Row):
    """Metrics of a row of instance segmentation, or their differences; None without small instances."""

    ap50: _Change
    ap50_interval: _Interval | None
    small_ap: _Change | None
    small_ap_interval: _Interval | None
    boundary_ap: _Change
    boundary_ap_interval: _Interval | None
    interval: _Interval | None
    by_seed: list[_Change]


class _InstanceScore(_InstanceMetrics):
    ap: _Iou


class _InstanceDifference(_InstanceMetrics):
    baseline: str
    difference: _Change


class _Micrographs(Record):
    test: _Count


class _StudyConfig(Record):
    seeds: list[int] = Field(min_length=1)
    test_split: str
    folds: int | str | None = None


class StudyResult(Record):
    """The content of utility.json of segmentation, as far as it is read."""

    # Missing from the file, and so from what is read.
    task: Literal["segment"] = Field("segment", exclude=True)
    config: _StudyConfig
    class_names: list[str]
    micrographs: _Micrographs
    warnings: list[str]
    scores: list[_Score]
    differences: list[_Difference]
    gaps: list[_Gap] = []
    by_class: list[_ByClass] = []
    """This and gaps are missing from studies of older versions."""

    @model_validator(mode="after")
    def _check_classes(self) -> StudyResult:
        if any(len(score.class_iou) != len(self.class_names) for score in self.scores):
            raise ValueError(f"scores: class_iou must have {len(self.class_names)} values, one per class")
        return self


class ClassifierStudyResult(Record):
    """The content of utility.json of classification, as far as it is read."""

    task: Literal["classify"]
    config: _StudyConfig
    images: dict[str, Annotated[list[_Count], Field(min_length=2, max_length=2)]]
    """Number of sound and of defective images of train, val and test."""
    num_parents: _Count
    """Number of test micrographs that the test images were cut from."""
    warnings: list[str]
    scores: list[_ClassifierScore]
    differences: list[_ClassifierDifference]

    @model_validator(mode="after")
    def _check_splits(self) -> ClassifierStudyResult:
        if not {"train", "val", "test"} <= self.images.keys():
            raise ValueError("images: must have train, val and test")
        return self


class InstanceStudyResult(Record):
    """The content of utility.json of instance segmentation, as far as it is read."""

    task: Literal["instance"]
    config: _StudyConfig
    micrographs: _Micrographs
    num_instances: _Count
    """True instances in the test tiles."""
    small_area: float = Field(ge=0, lt=2**53)
    """Largest area of a small instance, px."""
    warnings: list[str]
    scores: list[_InstanceScore]
    differences: list[_InstanceDifference]


_KINDS: dict[str, type[StudyResult | ClassifierStudyResult | InstanceStudyResult]] = {
    "classify": ClassifierStudyResult,
    "instance": InstanceStudyResult,
}


def load_study_start(output_dir: Path) -> StudyStart:
    """Reads study.json from an output folder of `utility`.

    Raises:
        InputError: if it is missing or damaged.
    """
    return load_record(output_dir / STUDY_FILE, StudyStart)


def load_study_result(path: Path) -> dict[str, Any]:
    """Reads utility.json from an output folder of `utility`, or the file itself.

    Raises:
        InputError: if it is missing, as it is until all cells are finished, or damaged.
    """
    file = path if path.suffix == ".json" else path / RESULT_FILE
    values = load_json(file)
    kind = _KINDS.get(read_task(values), StudyResult) if isinstance(values, dict) else StudyResult
    return parse_record(values, kind, str(file)).model_dump()

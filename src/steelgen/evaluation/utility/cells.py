"""Cells of a utility study: names and result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelgen import __version__
from steelgen.changes import CHANGES_FILE
from steelgen.config.base import config_to_json
from steelgen.config.studies import StudyConfig
from steelgen.config.utility import DataCode, UtilityConfig, parse_code
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.sets import describe_geometry
from steelgen.evaluation.utility.folds import list_folds
from steelgen.evaluation.utility.results import CellT
from steelgen.files import load_record
from steelgen.runs import describe_environment


@dataclass(frozen=True)
class Cell:
    """One network of a study: a code, an architecture, a seed, and a fold if there are folds."""

    code: DataCode
    architecture: str
    seed: int
    fold: str | None = None

    @property
    def name(self) -> str:
        """Stem of its file."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.code.text}-{self.architecture.replace(':', '_')}-seed{self.seed}{fold}"


def list_cells(config: StudyConfig, folds: Sequence[str] | None = None) -> list[Cell]:
    """All cells, seed by seed and fold by fold, so that an unfinished study has complete seeds.

    Args:
        folds: names of the folds, if known; None reads them from the dataset. Classification has none.

    Raises:
        InputError: see `list_folds`.
    """
    names = list_folds(config) if folds is None and isinstance(config, UtilityConfig) else folds
    return [
        Cell(parse_code(code), architecture, seed, fold)
        for seed in config.seeds
        for fold in names or (None,)
        for code in config.codes
        for architecture in config.architectures
    ]


def cell_path(output_dir: Path, cell: Cell) -> Path:
    """Path of the result of a finished cell."""
    return output_dir / "cells" / f"{cell.name}.json"


def predictions_path(output_dir: Path, cell: Cell) -> Path:
    """Path of the predicted instances of a cell, as COCO results."""
    return output_dir / "cells" / f"{cell.name}.coco.json"


def load_cells(config: StudyConfig, studies: Sequence[str], kind: type[CellT]) -> list[CellT] | None:
    """Reads the results of all cells, in the order of `list_cells`; None if one is not finished; see `load_cell`."""
    found = [load_cell(config.output_dir, cell, studies, kind) for cell in list_cells(config)]
    cells = [cell for cell in found if cell is not None]
    return cells if len(cells) == len(found) else None


def describe_study(config: StudyConfig, study: str, geometry: CropGeometry) -> dict[str, Any]:
    """The first fields of utility.json, the same for all tasks."""
    return {
        "steelgen": __version__,
        "study": study,
        "config": config_to_json(config),
        "environment": describe_environment(),
        "geometry": describe_geometry(geometry),
    }


def warn_mixed(num_older: int, num_cells: int) -> list[str]:
    """A warning if cells are older than allowed changes."""
    return [f"{num_older} of {num_cells} cells are older than the changes in {CHANGES_FILE}"] if num_older else []


def load_cell(output_dir: Path, cell: Cell, studies: Sequence[str], kind: type[CellT]) -> CellT | None:
    """Reads the result of a cell of any of `studies` (hashes); None if it is not finished.

    Raises:
        InputError: if the file is damaged, or from another config or other data.
    """
    path = cell_path(output_dir, cell)
    if not path.is_file():
        return None
    found = load_record(path, kind)
    if found.study not in studies:
        raise InputError(f"{path}: from another config or other data; remove it or use another output folder")
    wanted = cell.code.text, cell.architecture, cell.seed, cell.fold
    if (found.code, found.architecture, found.seed, found.fold) != wanted:
        raise InputError(f"{path}: contains another cell: {found.code!r}, {found.architecture!r}, seed {found.seed}")
    return found

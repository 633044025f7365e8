"""The cells of a utility study: what they are called and where the finished ones lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelgen.config.utility import DataCode, UtilityConfig, parse_code
from steelgen.errors import InputError
from steelgen.evaluation.utility.results import CellResult
from steelgen.files import load_record


@dataclass(frozen=True)
class Cell:
    """One code, one architecture, one seed: one network."""

    code: DataCode
    architecture: str
    seed: int

    @property
    def name(self) -> str:
        """As its file is called."""
        return f"{self.code.text}-{self.architecture.replace(':', '_')}-seed{self.seed}"


def list_cells(config: UtilityConfig) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished study has whole seeds."""
    return [
        Cell(parse_code(code), architecture, seed)
        for seed in config.seeds
        for code in config.codes
        for architecture in config.architectures
    ]


def cell_path(output_dir: Path, cell: Cell) -> Path:
    """Where a finished cell lies."""
    return output_dir / "cells" / f"{cell.name}.json"


def load_cell(output_dir: Path, cell: Cell, studies: Sequence[str]) -> CellResult | None:
    """A finished cell; None where there is none.

    Args:
        output_dir: of the study.
        cell: which one.
        studies: hashes of the studies that it may belong to.

    Raises:
        InputError: if it is damaged, or was made by another config or from other data.
    """
    path = cell_path(output_dir, cell)
    if not path.is_file():
        return None
    found = load_record(path, CellResult)
    if found.study not in studies:
        raise InputError(f"{path}: was made by another config or from other data; remove it or name another folder")
    if (found.code, found.architecture, found.seed) != (cell.code.text, cell.architecture, cell.seed):
        raise InputError(f"{path}: holds another cell: {found.code!r}, {found.architecture!r}, seed {found.seed}")
    return found

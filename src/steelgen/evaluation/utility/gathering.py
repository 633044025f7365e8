"""The content of utility.json of a study of segmentation, from its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.config.utility import FOLD, UtilityConfig, parse_code
from steelgen.errors import InputError
from steelgen.evaluation.utility.cells import cell_path, describe_study, list_cells, load_cells, warn_mixed
from steelgen.evaluation.utility.data import StudyData, count_data
from steelgen.evaluation.utility.results import CellResult
from steelgen.evaluation.utility.statistics import compare_classes, find_warnings, summarize
from steelgen.models.architectures import build_architecture


def check_architectures(config: UtilityConfig, data: StudyData) -> None:
    """Raises InputError if a network of the study cannot be built."""
    channels, num_classes, training = data.geometry.in_channels, data.info.num_classes, config.training
    for name in config.architectures:
        build_architecture(name, channels, num_classes, training.base_channels, training.weights)


def gather_segmentation(
    config: UtilityConfig, studies: Mapping[str | None, StudyData], hashes: Sequence[str]
) -> dict[str, Any] | None:
    """Computes the content of utility.json; None while cells are missing.

    Cells may be of studies with any of the hashes, the first of which is the current one.

    Raises:
        InputError: if a cell was tested on other micrographs.
    """
    cells = load_cells(config, hashes, CellResult)
    if cells is None:
        return None
    for cell, place in zip(cells, list_cells(config), strict=True):
        data = studies[place.fold]
        shape = (len(data.test), data.info.num_classes, data.info.num_classes)
        if (measured := np.shape(cell.test.confusion)) != shape:
            raise InputError(f"{cell_path(config.output_dir, place)}: test.confusion: shape {measured}, not {shape}")
        edges = (len(data.test), 4, data.info.num_classes)
        if cell.test.boundaries is not None and (measured := np.shape(cell.test.boundaries)) != edges:
            raise InputError(f"{cell_path(config.output_dir, place)}: test.boundaries: shape {measured}, not {edges}")
    older = [cell for cell in cells if cell.study != hashes[0]]
    for cell in older:
        if cell.test.micrographs != studies[cell.fold].test.stems:
            raise InputError(
                f"{config.output_dir}: cell {cell.code}, {cell.architecture}, seed {cell.seed} was tested on other "
                "micrographs and cannot be compared; remove it from cells/"
            )
    mixed = warn_mixed(len(older), len(cells))
    tests = {(cell.code, cell.architecture, cell.seed, cell.fold): cell.test for cell in cells}

    def gather_counts(field: str) -> dict[tuple[str, str], NDArray[np.int64]]:
        """(S, N, …) counts of all seeds and test micrographs, by code and architecture."""
        return {
            (code, architecture): np.array(
                [
                    [counted for fold in studies for counted in getattr(tests[code, architecture, seed, fold], field)]
                    for seed in config.seeds
                ]
            )
            for code in config.codes
            for architecture in config.architectures
        }

    confusions = gather_counts("confusion")
    known = all(cell.test.boundaries is not None for cell in cells)
    # Folds may differ by a micrograph; the smallest counts.
    counts = {code: min(count_data(parse_code(code), data) for data in studies.values()) for code in config.codes}
    tested = [len(data.test) for data in studies.values()]
    folds = None if config.folds is None else np.repeat(np.arange(len(tested)), tested)
    first = next(iter(studies.values()))
    return {
        **describe_study(config, hashes[0], first.geometry),
        "class_names": first.info.class_names,
        "micrographs": {
            "train": min(len(data.train) for data in studies.values()),
            "val": min(len(data.val) for data in studies.values()),
            "test": sum(tested),
        },
        **({} if folds is None else {"folds": dict(zip(studies, tested, strict=True))}),
        "num_generated": min(data.num_generated for data in studies.values()),
        "seconds": sum(cell.seconds for cell in cells),
        "notes": list(dict.fromkeys(note for data in studies.values() for note in data.notes)),
        "warnings": [*mixed, *_find_leak(config), *find_warnings(len(config.seeds), sum(tested))],
        **summarize(confusions, counts, config.num_bootstrap, folds),
        "by_class": compare_classes(confusions, counts, gather_counts("boundaries") if known else None),
    }


def _find_leak(config: UtilityConfig) -> list[str]:
    """Warnings if the generated pairs or the predicted masks of all folds are the same."""
    inputs = {
        "generated": (config.generated, "generated pairs: a generator"),
        "predicted": (config.predicted, "predicted masks: a segmenter"),
    }
    return [
        f"all folds use the same {what} trained on any of these micrographs has seen test micrographs of some fold; "
        f"put {FOLD} into {name}"
        for name, (path, what) in inputs.items()
        if config.folds is not None and path is not None and FOLD not in str(path)
    ]

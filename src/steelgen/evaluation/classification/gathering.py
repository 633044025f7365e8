"""The content of utility.json of a classification study, from its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.config.classify import ClassifyConfig
from steelgen.config.utility import parse_code
from steelgen.errors import InputError
from steelgen.evaluation.classification.data import ClassifierData
from steelgen.evaluation.classification.statistics import summarize_scores
from steelgen.evaluation.utility.cells import cell_path, describe_study, list_cells, load_cells, warn_mixed
from steelgen.evaluation.utility.results import ClassifierCell
from steelgen.evaluation.utility.statistics import find_warnings
from steelgen.models.classifier import build_classifier


def check_classifiers(config: ClassifyConfig, data: ClassifierData) -> None:
    """Raises InputError if a network of the study cannot be built."""
    for name in config.architectures:
        build_classifier(name, data.geometry.in_channels, config.training.base_channels, config.training.weights)


def gather_classifiers(
    config: ClassifyConfig, studies: Mapping[str | None, ClassifierData], hashes: Sequence[str]
) -> dict[str, Any] | None:
    """Computes the content of utility.json; None while cells are missing.

    Cells may be of studies with any of the hashes, the first of which is the current one.

    Raises:
        InputError: if a cell was tested on other images.
    """
    data, cells = studies[None], load_cells(config, hashes, ClassifierCell)
    if cells is None:
        return None
    labels = data.test.labels
    for cell, place in zip(cells, list_cells(config), strict=True):
        if cell.test.images != data.test.names or cell.test.labels != labels.astype(int).tolist():
            raise InputError(
                f"{cell_path(config.output_dir, place)}: was tested on other images and cannot be compared; remove it"
            )
    tests = {(cell.code, cell.architecture, cell.seed): cell.test.scores for cell in cells}
    scores: dict[tuple[str, str], NDArray[np.float64]] = {
        (code, architecture): np.array([tests[code, architecture, seed] for seed in config.seeds])
        for code in config.codes
        for architecture in config.architectures
    }
    num_parents = len(set(data.test_parents))
    older = sum(cell.study != hashes[0] for cell in cells)
    return {
        "task": config.task,
        **describe_study(config, hashes[0], data.geometry),
        "images": {
            name: [len(sides.sound), len(sides.defective)]
            for name, sides in (("train", data.train), ("val", data.val), ("test", data.test))
        },
        "num_parents": num_parents,
        "num_generated": data.num_generated,
        "seconds": sum(cell.seconds for cell in cells),
        "notes": [],
        "warnings": [*warn_mixed(older, len(cells)), *data.warnings, *find_warnings(len(config.seeds), num_parents)],
        **summarize_scores(
            scores,
            labels,
            data.test_parents,
            {code: data.count(parse_code(code)) for code in config.codes},
            config.num_bootstrap,
        ),
    }

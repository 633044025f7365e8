"""The content of utility.json of a study of instances, from its cells and their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steelgen.config.instance import InstanceConfig
from steelgen.config.utility import parse_code
from steelgen.errors import InputError
from steelgen.evaluation.instances.coco import TRUTH_FILE, load_predicted, save_truth
from steelgen.evaluation.instances.data import InstanceData
from steelgen.evaluation.instances.matching import Matches
from steelgen.evaluation.instances.statistics import summarize_matches
from steelgen.evaluation.instances.training import match_predicted
from steelgen.evaluation.utility.cells import (
    cell_path,
    describe_study,
    list_cells,
    load_cells,
    predictions_path,
    warn_mixed,
)
from steelgen.evaluation.utility.data import count_data
from steelgen.evaluation.utility.results import InstanceCell
from steelgen.evaluation.utility.statistics import find_warnings


def gather_instances(
    config: InstanceConfig, studies: Mapping[str | None, InstanceData], hashes: Sequence[str]
) -> dict[str, Any] | None:
    """Writes truth.coco.json and computes the content of utility.json; None while cells are missing.

    Cells may be of studies with any of the hashes, the first of which is the current one. Their predictions are read
    again, so that the figures are those of the files.

    Raises:
        InputError: if a cell was tested on other micrographs, or its predictions are missing or damaged.
    """
    data, cells = studies[None], load_cells(config, hashes, InstanceCell)
    if cells is None:
        return None
    matches: dict[tuple[str, str], list[dict[str, list[Matches]]]] = {
        (code, architecture): [] for code in config.codes for architecture in config.architectures
    }
    for cell, place in zip(cells, list_cells(config), strict=True):
        if cell.test.micrographs != data.test.stems:
            raise InputError(
                f"{cell_path(config.output_dir, place)}: was tested on other micrographs and cannot be compared; "
                "remove it"
            )
        predicted = load_predicted(predictions_path(config.output_dir, place), data.test_tiles)
        # Cells are listed seed by seed.
        matches[cell.code, cell.architecture].append(match_predicted(data, data.test_tiles, predicted, config))
    save_truth(config.output_dir / TRUTH_FILE, data)
    older = sum(cell.study != hashes[0] for cell in cells)
    return {
        "task": config.task,
        **describe_study(config, hashes[0], data.geometry),
        "class_names": data.info.class_names,
        "background": data.info.class_names[data.background],
        "micrographs": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "num_tiles": len(data.test_tiles),
        "num_instances": sum(len(tile.truth.labels) for tile in data.test_tiles),
        "small_area": data.small_area,
        "num_generated": data.num_generated,
        "seconds": sum(cell.seconds for cell in cells),
        "notes": data.notes,
        "warnings": [
            *warn_mixed(older, len(cells)),
            *_warn_blind(config, matches),
            *find_warnings(len(config.seeds), len(data.test)),
        ],
        **summarize_matches(
            matches,
            [tile.micrograph for tile in data.test_tiles],
            {code: count_data(parse_code(code), data) for code in config.codes},
            config.num_bootstrap,
        ),
    }


def _warn_blind(
    config: InstanceConfig, matches: Mapping[tuple[str, str], Sequence[Mapping[str, Sequence[Matches]]]]
) -> list[str]:
    """A warning for each architecture that found no true instance at all, with any code and seed."""
    found = {
        name: any(part.matched.any() for code in config.codes for seed in matches[code, name] for part in seed["mask"])
        for name in config.architectures
    }
    return [
        f"{name} found no instance with any code and seed: its rows say nothing about generated pairs, and pooled rows "
        "include them; raise training.steps or training.enlargement, or leave it out"
        for name in config.architectures
        if not found[name]
    ]

"""`utility`: a study of codes × architectures × seeds of any task, cell by cell."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelgen import __version__
from steelgen.changes import (
    list_changes,
    list_known_changes,
    note_changes,
    refresh_config,
    refuse_changes,
)
from steelgen.config.base import config_to_json
from steelgen.config.classify import ClassifyConfig
from steelgen.config.instance import InstanceConfig
from steelgen.config.studies import StudyConfig, choose_study
from steelgen.config.utility import UtilityConfig
from steelgen.devices import pick_device, resolve_precision
from steelgen.errors import InputError
from steelgen.evaluation.classification.data import load_images
from steelgen.evaluation.classification.gathering import check_classifiers, gather_classifiers
from steelgen.evaluation.classification.training import run_classifier_cell
from steelgen.evaluation.instances.data import load_instances
from steelgen.evaluation.instances.gathering import gather_instances
from steelgen.evaluation.instances.training import check_instance_networks, run_instance_cell
from steelgen.evaluation.utility.cells import (
    Cell,
    cell_path,
    list_cells,
    load_cell,
)
from steelgen.evaluation.utility.data import describe_inputs, hash_studies, load_studies
from steelgen.evaluation.utility.gathering import check_architectures, gather_segmentation
from steelgen.evaluation.utility.results import (
    STUDY_FILE,
    CellResult,
    CellStart,
    ClassifierCell,
    InstanceCell,
    load_study_start,
)
from steelgen.evaluation.utility.training import run_cell
from steelgen.evaluation.utility.words import WORDS
from steelgen.files import new_folder, save_json
from steelgen.shards import Shard

_FREE_KEYS = ("output_dir", "codes", "num_defective", "architectures", "seeds", "num_bootstrap", "device")
"""Config keys that change no cell; codes, architectures and seeds may be added to a study."""


@dataclass(frozen=True)
class _Task:
    """What a study does for its field `task`; all functions take the config first."""

    load: Callable[[Any], Mapping[str | None, Any]]
    """Reads the data of each fold; of None without folds."""
    check_networks: Callable[[Any, Any], None]
    """Builds the networks for the data of a fold, so that a missing package is reported before training."""
    run: Callable[[Cell, Any, Any], dict[str, Any]]
    """Trains and tests a cell on the data of its fold."""
    kind: type[CellStart]
    """The content of the file of a cell."""
    gather: Callable[[Any, Any, Sequence[str]], dict[str, Any] | None]
    """Computes the content of utility.json from the finished cells; None while some are missing."""


def load_data(config: StudyConfig) -> Mapping[str | None, Any]:
    """Reads the data of each fold of a study, by its name; that of a study without folds has the name None.

    Raises:
        InputError: if it cannot be used.
    """
    return _find_task(config).load(config)


def _find_task(config: StudyConfig) -> _Task:
    if isinstance(config, ClassifyConfig):
        return _Task(
            load=lambda config: {None: load_images(config)},
            check_networks=check_classifiers,
            run=run_classifier_cell,
            kind=ClassifierCell,
            gather=gather_classifiers,
        )
    if isinstance(config, InstanceConfig):
        return _Task(
            load=lambda config: {None: load_instances(config)},
            check_networks=check_instance_networks,
            run=run_instance_cell,
            kind=InstanceCell,
            gather=gather_instances,
        )
    return _Task(
        load=load_studies,
        check_networks=check_architectures,
        run=run_cell,
        kind=CellResult,
        gather=gather_segmentation,
    )


def utility(
    config: StudyConfig,
    report: Callable[[str], None] = lambda line: None,
    shard: Shard | None = None,
    allow_changed: Sequence[str] = (),
    report_cells: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Runs the missing cells and, when all are finished, gathers them into utility.json and utility.html.

    Every finished cell is a file in cells/, so a stopped study resumes with the next one, and shards may run at once on
    all machines that share the folder.

    Args:
        report: called with a line when a cell is finished.
        shard: runs only this part of the cells; the last one to finish gathers.
        allow_changed: config fields and sections that may differ from those of the started study; `dataset` and
            `generated` include their data. Finished cells are kept.
        report_cells: called with (cells done, total cells).

    Returns:
        The content of utility.json; None while cells of other shards are missing.

    Raises:
        InputError: if data, architecture or output folder cannot be used.
    """
    precision = resolve_precision(config.mixed_precision, pick_device(config.device))
    config = config.model_copy(update={"mixed_precision": precision})
    task, words = _find_task(config), WORDS[config.task]
    studies = task.load(config)
    task.check_networks(config, next(iter(studies.values())))
    hashes = _open_study(config, studies, allow_changed)
    cells = list_cells(config)
    mine = shard.indices(len(cells)) if shard else range(len(cells))
    report_cells(0, len(mine))
    for number, index in enumerate(mine, start=1):
        cell = cells[index]
        if load_cell(config.output_dir, cell, hashes, task.kind) is None:
            started = time.monotonic()
            values = {"study": hashes[0], **task.run(cell, studies[cell.fold], config)}
            seconds = time.monotonic() - started
            save_json(cell_path(config.output_dir, cell), {**values, "seconds": round(seconds, 1)})
            score = f"{words.metric} {values['test'][words.key]:.3f}"
            report(f"{number}/{len(mine)} {cell.name}: {score}, {seconds:.0f} s")
        report_cells(number, len(mine))
    result = task.gather(config, studies, hashes)
    if result is not None:
        from steelgen.evaluation.study_views import save_study  # charts take a second to import

        save_study(config.output_dir, result)
    return result


def hash_study(config: StudyConfig, studies: Mapping[str | None, Any]) -> str:
    """Hash of the settings and pixels that all cells of a study share."""
    shared = json.dumps([_drop_free(config_to_json(config)), hash_studies(studies)], sort_keys=True)
    return hashlib.sha256(shared.encode()).hexdigest()[:32]


def _drop_free(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _FREE_KEYS}


def _open_study(config: StudyConfig, studies: Mapping[str | None, Any], allow_changed: Sequence[str]) -> list[str]:
    """Creates the output folder, or checks that an existing one is of the same study.

    Returns:
        Hashes of the studies whose cells are used: this one, then the same before allowed changes.
    """
    path, settings, study = config.output_dir / STUDY_FILE, config_to_json(config), hash_study(config, studies)
    inputs = describe_inputs(studies)
    described = {"steelgen": __version__, "study": study, "earlier": [], "inputs": inputs, "config": settings}
    if isinstance(config, UtilityConfig) and config.folds is not None:
        described["folds"] = [str(name) for name in studies]
    if not path.is_file():
        try:
            with new_folder(config.output_dir) as working:
                save_json(working / STUDY_FILE, described)
        except (InputError, OSError):
            # Another shard may have created it at the same time.
            if not path.is_file():
                raise
    start = load_study_start(config.output_dir)
    if choose_study(start.config, str(path)) is not type(config):
        raise InputError(
            f"{config.output_dir}: contains a study of another task, not {config.task}; use another folder"
        )
    changes = [
        *list_known_changes(start.inputs or {}, inputs),
        *list_changes(_drop_free(refresh_config(start.config, type(config))), _drop_free(settings)),
    ]
    if start.inputs is None and not changes and start.study != study:
        raise InputError(f"{config.output_dir}: contains a study of other data; use another folder or remove it")
    refuse_changes(config.output_dir, changes, allow_changed)
    note_changes(config.output_dir, changes)
    earlier = [found for found in (start.study, *start.earlier) if found != study]
    if (start.study, start.inputs, start.earlier, start.config) != (study, inputs, earlier, settings):
        save_json(path, {**described, "earlier": earlier})
    return [study, *earlier]

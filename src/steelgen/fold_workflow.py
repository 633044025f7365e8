"""A workflow over the folds of its utility study: a generator and pairs for each fold, then one study of all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from steelgen.config.base import Section, config_to_json, parse_config
from steelgen.config.utility import UtilityConfig
from steelgen.config.workflow import FOLD, WorkflowConfig
from steelgen.data.folder import list_pairs, list_splits, load_dataset_info, load_metadata
from steelgen.data.resplit import save_splits
from steelgen.errors import InputError
from steelgen.evaluation.utility.data import insert_fold
from steelgen.evaluation.utility.folds import divide_folds, list_folds, list_pooled


def list_settings(config: WorkflowConfig, actions: Iterable[str]) -> Iterator[tuple[str, Section, str | None]]:
    """Lists action, config and fold of each stage in order; the fold is None for a stage that runs once.

    Stages without {fold} in their paths run once, before the folds; the study runs once, after them.

    Args:
        actions: all stages that a workflow may have, in order.

    Raises:
        InputError: see `list_folds`.
    """
    found = [(action, getattr(config, action)) for action in actions if action != "utility"]
    settings = [(action, section) for action, section in found if section is not None]
    folded = [(action, section) for action, section in settings if config.has_folds and _has_fold(section)]
    yield from ((action, section, None) for action, section in settings if (action, section) not in folded)
    if folded:
        assert config.utility is not None
        for fold in list_folds(config.utility):
            yield from ((action, _insert(section, fold), fold) for action, section in folded)
    if config.utility is not None:
        yield "utility", config.utility, None


def write_fold_datasets(config: WorkflowConfig) -> list[Path]:
    """Writes the dataset folder of each fold, from which its generator is trained, unless it exists.

    Returns:
        The folders written.

    Raises:
        InputError: if a folder exists with other micrographs in its splits; see also `divide_folds`.
    """
    if config.fold_dataset is None:
        return []
    assert config.utility is not None
    written = []
    for fold, divided in divide_folds(config.utility).items():
        out = insert_fold(config.fold_dataset, fold)
        assert out is not None
        if out.is_dir():
            _check_dataset(out, divided)
        else:
            write_division(config.utility, divided, out)
            written.append(out)
    return written


def write_division(config: UtilityConfig, divided: dict[str, list[str]], out: Path) -> None:
    """Writes the dataset folder of a fold, or of a part of its micrographs.

    Args:
        config: the study, whose splits are pooled.
        divided: stems of the micrographs by new split; others are left out.

    Raises:
        InputError: if `out` is in use.
    """
    root, metadata = config.dataset, load_metadata(config.dataset)
    chosen = {stem: split for split, stems in divided.items() for stem in stems}
    pooled = [(split, pair) for split in list_pooled(config) for pair in list_pairs(root, split)]
    found = [(split, pair) for split, pair in pooled if pair.stem in chosen]
    rows = [dict(metadata.get(f"{split}/images/{pair.image.name}", {})) for split, pair in found]
    pairs = [pair for _, pair in found]
    save_splits(out, load_dataset_info(root), pairs, rows, [chosen[pair.stem] for pair in pairs])


def _check_dataset(out: Path, divided: dict[str, list[str]]) -> None:
    for split, stems in divided.items():
        found = {pair.stem for pair in list_pairs(out, split)} if split in list_splits(out) else set()
        if found != set(stems):
            name = sorted(found ^ set(stems))[0]
            raise InputError(f"{out}: {split} differs from that of the fold (by {name}); remove it to write it anew")


def _has_fold(section: Section) -> bool:
    return FOLD in json.dumps(config_to_json(section))


def _insert(section: Section, fold: str) -> Section:
    text = json.dumps(config_to_json(section)).replace(FOLD, fold)
    return parse_config(json.loads(text), type(section), origin=f"fold {fold}")

"""Folds of a utility study: each micrograph is tested once, by networks trained on the other folds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from steelgen.config.utility import UtilityConfig
from steelgen.data.folder import index_by_stem, list_pairs, list_splits, load_metadata
from steelgen.data.splits import parent_of
from steelgen.errors import InputError

_VALIDATION_STREAM, _FOLD_STREAM = 13, 14
"""Random streams of validation micrographs, and of folds that are not a column."""
_NAME = re.compile(r"[\w.-]{1,40}")


def list_folds(config: UtilityConfig) -> dict[str, list[str]]:
    """Lists the folds in order, each with the stems of its test micrographs; empty for a study without folds.

    Only file names and metadata.jsonl are read.

    Raises:
        InputError: if the column of folds is missing for a micrograph, a value cannot be part of a file name, there are
            fewer than two folds, a fold has one micrograph, or images of one micrograph are in different folds.
    """
    if config.folds is None:
        return {}
    root = config.dataset
    pairs = [(split, pair) for split in list_pooled(config) for pair in list_pairs(root, split)]
    index_by_stem(pair.image for _, pair in pairs)
    metadata = load_metadata(root)
    rows = {
        pair.stem: {"parent": parent_of(pair.stem), **metadata.get(f"{split}/images/{pair.image.name}", {})}
        for split, pair in pairs
    }
    parents = {stem: str(row["parent"]) for stem, row in rows.items()}
    if isinstance(config.folds, int):
        folds = _deal(parents, config.folds, root)
    else:
        folds = _read_column(rows, config.folds, root)
    members: dict[str, list[str]] = {name: [] for name in sorted(set(folds.values()), key=_sort_key)}
    for stem in sorted(rows):
        members[folds[stem]].append(stem)
    _check_folds(members, parents, config)
    return members


def divide_folds(config: UtilityConfig) -> dict[str, dict[str, list[str]]]:
    """Divides the micrographs of each fold into `train`, `val` and `test`, by stem; empty for a study without folds.

    Raises:
        InputError: see `list_folds`; also if val_share leaves none to train on.
    """
    members = list_folds(config)
    stems = [
        stem for split in list_pooled(config) for stem in (pair.stem for pair in list_pairs(config.dataset, split))
    ]
    divided = {}
    for name, listed in members.items():
        tested = set(listed)
        rest = [stem for stem in stems if stem not in tested]
        kept, held_back = choose_held_back(len(rest), config.val_share, config.dataset.name)
        parts = [[rest[index] for index in part] for part in (kept, held_back)]
        divided[name] = {"train": parts[0], "val": parts[1], "test": [stem for stem in stems if stem in tested]}
    return divided


def choose_held_back(total: int, share: float, name: str) -> tuple[list[int], list[int]]:
    """Chooses which of a dataset's training micrographs to train on and to validate on, the same for all seeds.

    Raises:
        InputError: if none would be left to train on.
    """
    count = count_held_back(total, share)
    if count >= total:
        raise InputError(
            f"val_share: {share} of the {total} training micrographs of {name} leaves none to train on; set val_split"
        )
    order = [int(index) for index in np.random.default_rng(_VALIDATION_STREAM).permutation(total)]
    return sorted(order[count:]), sorted(order[:count])


def count_held_back(total: int, share: float) -> int:
    """Number of `total` micrographs that `choose_held_back` validates on, at least one."""
    return max(1, round(total * share))


def list_pooled(config: UtilityConfig) -> list[str]:
    """Splits whose micrographs the folds share."""
    names = [config.train_split, config.val_split, config.test_split]
    present = list_splits(config.dataset)
    return [name for name in names if name in present] or [config.train_split]


def _read_column(rows: dict[str, dict[str, object]], column: str, root: Path) -> dict[str, str]:
    folds = {}
    for stem, row in rows.items():
        if row.get(column) is None:
            known = ", ".join(key for key in row if key != "file_name")
            raise InputError(f"{root}: folds: metadata.jsonl has no {column!r} for {stem} (has: {known})")
        folds[stem] = str(row[column])
        if not _NAME.fullmatch(folds[stem]):
            raise InputError(
                f"{root}: folds: {folds[stem]!r} in {column!r} of {stem} must have 1 to 40 letters, digits, . _ or -"
            )
    return folds


def _deal(parents: dict[str, str], count: int, root: Path) -> dict[str, str]:
    """Deals micrographs to folds at random, with all images of one in the same fold."""
    names = sorted(set(parents.values()))
    if len(names) < 2 * count:
        raise InputError(
            f"{root}: folds: {count} folds of at least 2 micrographs need {2 * count}, there are {len(names)}"
        )
    order = np.random.default_rng(_FOLD_STREAM).permutation(len(names))
    chosen = {names[index]: str(position % count + 1) for position, index in enumerate(order)}
    return {stem: chosen[parent] for stem, parent in parents.items()}


def _check_folds(members: dict[str, list[str]], parents: dict[str, str], config: UtilityConfig) -> None:
    where = f"{config.dataset}: folds {config.folds!r}"
    if len(members) < 2:
        raise InputError(f"{where}: all micrographs are in one fold; at least 2 folds are needed")
    for name, stems in members.items():
        if len({parents[stem] for stem in stems}) < 2:
            raise InputError(f"{where}: fold {name} has one micrograph ({stems[0]}); at least 2 are needed")
    found: dict[str, str] = {}
    for name, stems in members.items():
        for stem in stems:
            if found.setdefault(parents[stem], name) != name:
                raise InputError(
                    f"{where}: images of {parents[stem]} are in the folds {found[parents[stem]]} and {name}"
                )


def _sort_key(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)

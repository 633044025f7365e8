from __future__ import annotations

import numpy as np
import pytest

from steelgen.data.splits import assign_splits, parse_fractions
from steelgen.errors import InputError

_USUAL = {"train": 0.7, "val": 0.15, "test": 0.15}


def test_groups_stay_together_and_fractions_are_met() -> None:
    groups = [f"parent{index % 40}" for index in range(400)]
    splits = assign_splits(groups, _USUAL, seed=3)
    assert len(set(zip(groups, splits, strict=True))) == 40
    assert [splits.count(split) for split in _USUAL] == [280, 60, 60]


def test_seed_determines_the_splits() -> None:
    groups = [str(index) for index in range(30)]
    assert assign_splits(groups, _USUAL, seed=1) == assign_splits(groups, _USUAL, seed=1)
    assert assign_splits(groups, _USUAL, seed=1) != assign_splits(groups, _USUAL, seed=2)


def test_stratified_split_distributes_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    rare = (np.arange(60) % 10 == 0) * 100.0
    pixels = np.stack([rng.uniform(900, 1000, 60), rare], axis=1)
    splits = np.array(assign_splits([str(index) for index in range(60)], {"train": 0.5, "val": 0.5}, 0, pixels))
    assert rare[splits == "train"].sum() == rare[splits == "val"].sum()


def test_three_groups_fill_three_splits() -> None:
    assert sorted(assign_splits(["a", "b", "c"], _USUAL)) == ["test", "train", "val"]


def test_empty_split_is_an_error() -> None:
    with pytest.raises(InputError, match="split 'test' would be empty"):
        assign_splits(["a", "a", "b"], _USUAL)


def test_fraction_of_zero_omits_a_split() -> None:
    assert set(assign_splits(list("abcd"), {"train": 0.5, "val": 0.0, "test": 0.5})) == {"train", "test"}


@pytest.mark.parametrize("text", ["0.7,0.3", "0.7,0.2,0.2", "a,b,c", "1.2,-0.1,-0.1", "nan,0.5,0.5"])
def test_bad_fractions(text: str) -> None:
    with pytest.raises(InputError, match="three fractions"):
        parse_fractions(text)

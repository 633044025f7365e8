"""Assignment of images to train, val and test, by groups such as the tiles of a micrograph."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import SPLITS
from steelgen.errors import InputError

_TILE = re.compile(r"(?P<parent>.+)_(?P<x0>\d{1,7})_(?P<y0>\d{1,7})_(?P<x1>\d{1,7})_(?P<y1>\d{1,7})")


def parent_of(stem: str) -> str:
    """Returns the micrograph that a tile named NAME_x0_y0_x1_y1 was cut from; any other stem unchanged."""
    match = _TILE.fullmatch(stem)
    if match and int(match["x0"]) < int(match["x1"]) and int(match["y0"]) < int(match["y1"]):
        return match["parent"]
    return stem


def parse_fractions(text: str) -> dict[str, float]:
    """Parses `0.7,0.15,0.15` as the fractions of train, val and test.

    Raises:
        InputError: unless it is three numbers from 0 to 1 with the sum 1.
    """
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        fractions = []
    if len(fractions) != 3 or not all(0 <= part <= 1 for part in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"split {text!r}: must be three fractions (train,val,test) with the sum 1: 0.7,0.15,0.15")
    return dict(zip(SPLITS, fractions, strict=True))


def assign_splits(
    groups: Sequence[str], fractions: dict[str, float], seed: int = 0, class_pixels: NDArray[np.float64] | None = None
) -> list[str]:
    """Assigns each image to a split and keeps the images of a group together.

    Greedy: the largest groups first, each to the split that brings all splits closest to their fractions.

    Args:
        groups: group of each image (parent micrograph, steel type, …).
        fractions: share of the images in each split; 0 omits the split.
        seed: determines the order of groups of the same size.
        class_pixels: (N, C) pixels of each class in each image, for a stratified split: the fractions also apply to the
            pixels of each class.

    Returns:
        Split of each image.

    Raises:
        InputError: if a split with a fraction above 0 would be empty.
    """
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    names, membership = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if len(names) < len(wanted):
        raise InputError(
            f"{len(names)} groups ({', '.join(names[:5])}) for {len(wanted)} splits: "
            f"split {wanted[len(names)]!r} would be empty"
        )
    features = np.ones((len(groups), 1))
    if class_pixels is not None:
        features = np.concatenate([features, class_pixels[:, class_pixels.sum(axis=0) > 0]], axis=1)
    totals = np.zeros((len(names), features.shape[1]))
    np.add.at(totals, membership, features / features.sum(axis=0))
    shares = np.array([fractions[split] for split in wanted])[:, None]
    filled = np.zeros((len(wanted), features.shape[1]))
    chosen = np.zeros(len(names), int)
    order = np.random.default_rng(seed).permutation(len(names))
    for done, group in enumerate(sorted(order, key=lambda name: -totals[name].max())):
        before = (filled / shares - 1) ** 2
        after = ((filled + totals[group]) / shares - 1) ** 2
        # Weighting by the share gives an image the same weight in each split.
        cost = ((after - before) * shares).sum(axis=1)
        empty = filled[:, 0] == 0
        if len(names) - done <= empty.sum():
            cost[~empty] = np.inf
        chosen[group] = cost.argmin()
        filled[chosen[group]] += totals[group]
    return [wanted[chosen[group]] for group in membership]

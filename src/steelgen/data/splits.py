"""Which images are for training, validating and testing: whole groups, never single tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import SPLITS
from steelgen.errors import InputError


def parse_fractions(text: str) -> dict[str, float]:
    """Reads `0.7,0.15,0.15` as the fractions of train, val and test.

    Raises:
        InputError: unless there are three numbers from 0 to 1 whose sum is 1.
    """
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        fractions = []
    if len(fractions) != 3 or not all(0 <= part <= 1 for part in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"split {text!r}: must be three fractions for train,val,test with the sum 1, like 0.7,0.15,0.15"
        )
    return dict(zip(SPLITS, fractions, strict=True))


def assign_splits(
    groups: Sequence[str],
    fractions: dict[str, float],
    seed: int = 0,
    class_pixels: NDArray[np.float64] | None = None,
) -> list[str]:
    """Gives every image a split so that images of one group stay together.

    The largest groups go first, each where it brings the splits closest to their fractions.

    Args:
        groups: the group (parent micrograph, steel type …) of each image.
        fractions: the share of the images that each split should get; a share of 0 leaves the split out.
        seed: decides between groups of the same size.
        class_pixels: (N, C) pixels of each class in each image; where given, the classes are shared out in the same
            fractions as the images (a stratified split).

    Returns:
        The split of each image.

    Raises:
        InputError: if a split with a share above 0 would be empty.
    """
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    names, membership = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if len(names) < len(wanted):
        raise InputError(
            f"{len(wanted)} splits of {len(names)} groups ({', '.join(names[:5])}): "
            f"the split {wanted[len(names)]!r} would be empty"
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
        # Weighting by the share makes an image weigh the same wherever it goes.
        cost = ((after - before) * shares).sum(axis=1)
        empty = filled[:, 0] == 0
        if len(names) - done <= empty.sum():
            cost[~empty] = np.inf
        chosen[group] = cost.argmin()
        filled[chosen[group]] += totals[group]
    return [wanted[chosen[group]] for group in membership]

"""Predicted instances matched with true ones, as COCO does, by mask IoU and by boundary IoU.

All predicted instances of a tile count, not only COCO's 100: tiles of micrographs may have more islands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.instances.data import Tile

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds of COCO."""


class Predicted(NamedTuple):
    """The predicted instances in a tile; they may overlap."""

    labels: NDArray[np.int64]
    """(K,) class indices."""
    scores: NDArray[np.float64]
    """(K,) in [0, 1]."""
    masks: NDArray[np.bool_]
    """(K, h, w)."""


class Matches(NamedTuple):
    """The predicted instances of one class in all tiles, in the order of tiles and then of scores."""

    scores: NDArray[np.float64]
    """(D,)."""
    tiles: NDArray[np.int64]
    """(D,) index of the tile."""
    matched: NDArray[np.bool_]
    """(T, D) whether each has a true instance of its own at each IoU threshold."""
    ignored: NDArray[np.bool_]
    """(T, D) whether each neither helps nor harms."""
    num_true: NDArray[np.int64]
    """(N,) true instances in each tile that count."""


def match_tiles(
    tiles: Sequence[Tile],
    predictions: Iterable[Predicted],
    things: Sequence[int],
    small_area: float,
    boundary_width: int,
) -> dict[str, list[Matches]]:
    """Matches the predictions of all tiles.

    Args:
        tiles: N tiles.
        predictions: those of each tile.
        things: classes with instances.
        small_area: largest area of a small instance, px.
        boundary_width: see `find_inner_boundaries`.

    Returns:
        Matches of each class in `things`: `mask`; `small`, where larger instances are ignored, as COCO does for
        AP-small; and `boundary`, by the smaller of mask IoU and boundary IoU (Cheng et al. 2021, arXiv 2103.16562).
    """
    found: dict[str, list[list[Matches]]] = {kind: [[] for _ in things] for kind in ("mask", "small", "boundary")}
    for number, (tile, predicted) in enumerate(zip(tiles, predictions, strict=True)):
        for place, label in enumerate(things):
            chosen = np.flatnonzero(predicted.labels == label)
            order = chosen[np.argsort(-predicted.scores[chosen], kind="stable")]
            masks, kept = [predicted.masks[index] for index in order], tile.truth.labels == label
            true = np.append(0, np.cumsum(kept) * kept)[tile.truth.ids]
            overlap = compute_ious(masks, true, int(kept.sum()))
            edges = [find_inner_boundaries(mask, boundary_width) for mask in masks]
            edge_overlap = compute_ious(edges, find_inner_boundaries(true, boundary_width), int(kept.sum()))
            large = np.array([mask.sum() > small_area for mask in masks], bool)
            large_true = tile.truth.areas[kept] > small_area
            none, none_true = np.zeros_like(large), np.zeros_like(large_true)
            for kind, ious, out, out_true in (
                ("mask", overlap, none, none_true),
                ("small", overlap, large, large_true),
                ("boundary", np.minimum(overlap, edge_overlap), none, none_true),
            ):
                matched, ignored = match(ious, out, out_true)
                where, count = np.full(len(order), number), np.array([int((~out_true).sum())])
                found[kind][place].append(Matches(predicted.scores[order], where, matched, ignored, count))
    return {kind: [_join(parts) for parts in classes] for kind, classes in found.items()}


def _join(parts: list[Matches]) -> Matches:
    return Matches(*(np.concatenate(values, axis=-1) for values in zip(*parts, strict=True)))


def match(
    ious: NDArray[np.float64], ignored: NDArray[np.bool_], ignored_true: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Matches predicted with true instances at each threshold, as evaluateImg of pycocotools does.

    In the order of their scores, each predicted instance takes the free true one with the largest IoU of at least the
    threshold, an ignored one only if there is no other.

    Args:
        ious: (D, G), predicted instances by falling score.
        ignored: (D,) whether a predicted instance is ignored if it matches none.
        ignored_true: (G,) whether a true instance is ignored.

    Returns:
        matched, ignored: (T, D) for each of `THRESHOLDS`.
    """
    shape = len(THRESHOLDS), len(ious)
    matched, unused = np.zeros(shape, bool), np.broadcast_to(ignored, shape).copy()
    if not ious.size:
        return matched, unused
    free = np.ones((len(THRESHOLDS), ious.shape[1]), bool)
    rows = np.arange(len(THRESHOLDS))
    for number, row in enumerate(ious):
        near = free & (row >= THRESHOLDS[:, None])
        first = near & ~ignored_true
        near = np.where(first.any(axis=1, keepdims=True), first, near)
        # Among equals the last, as in pycocotools.
        best = ious.shape[1] - 1 - np.argmax(np.where(near, row, -1.0)[:, ::-1], axis=1)
        hit = near.any(axis=1)
        free[rows[hit], best[hit]] = False
        matched[:, number] = hit
        unused[:, number] = np.where(hit, ignored_true[best], ignored[number])
    return matched, unused


def compute_ious(masks: Sequence[NDArray[np.bool_]], ids: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Computes the IoU of each mask with each instance.

    Args:
        masks: D times (h, w).
        ids: (h, w) numbers of the instances, from 1; 0 outside.
        count: G, the largest number.

    Returns:
        (D, G); 0 where both are empty.
    """
    areas = np.bincount(ids.ravel(), minlength=count + 1)[1:]
    shared = np.array([np.bincount(ids[mask], minlength=count + 1)[1:] for mask in masks]).reshape(len(masks), count)
    total = np.array([mask.sum() for mask in masks]).reshape(-1, 1) + areas - shared
    return np.divide(shared, total, out=np.zeros(shared.shape), where=total > 0)


def find_inner_boundaries(ids: NDArray[Any], width: int) -> NDArray[Any]:
    """Finds the pixels of each instance within `width` px of its border, the image's edge included.

    This is the instance minus its erosion by a 3×3 square, `width` times, as in the code of Cheng et al. 2021
    (arXiv 2103.16562), whose width is 2 % of the image diagonal.

    Args:
        ids: (h, w) numbers of the instances, 0 outside; or one mask.
        width: px.

    Returns:
        (h, w), the same with 0 in the interior of the instances.
    """
    height, wide = ids.shape
    inner = ids
    for _ in range(width):
        padded = np.pad(inner, 1)
        around = [padded[top : top + height, left : left + wide] for top in range(3) for left in range(3)]
        inner = np.where(np.logical_and.reduce([part == inner for part in around]), inner, 0)
    return np.where(inner == ids, 0, ids).astype(ids.dtype)

"""Annotations of one micrograph → its mask and its instance map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import Annotation
from steelgen.data.rasterize import Coverage, compute_coverage, select_pixels
from steelgen.data.runlength import decode_runs
from steelgen.errors import InputError

Overlap = Literal["later", "smaller", "ignore"]
"""Who gets a pixel that two annotations claim: the later one, the smaller one, or nobody (ignore_index)."""

Agreement = Literal["union", "intersection", "majority"]
"""What becomes foreground where annotators differ: marked by any of them, by all, or by more than half."""

MAX_INSTANCES = 65535


def compose_mask(
    annotations: Sequence[Annotation], height: int, width: int, overlap: Overlap = "later", ignore_index: int = 255
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Draws the annotations of one annotator.

    A pixel that polygons share and together cover wholly goes to the one with the largest share, so that
    annotations that touch leave no seam of background.

    Returns:
        mask: (height, width) class indices, 0 where nothing is annotated; instances: (height, width) with 1, 2 … in the
        order of the annotations, 0 where there is none.

    Raises:
        InputError: if run lengths leave the image or there are more than 65,535 annotations.
    """
    if len(annotations) > MAX_INSTANCES:
        raise InputError(f"{len(annotations)} annotations in one image; instance maps hold {MAX_INSTANCES}")
    drawn = [_draw(annotation, height, width) for annotation in annotations]
    order = list(range(len(annotations)))
    if overlap == "smaller":
        order.sort(key=lambda index: -int(drawn[index][1].sum()))
    total = np.zeros((height, width), np.float32)
    for coverage, _ in drawn:
        total[coverage.window] += coverage.share
    owner = np.zeros((height, width), np.uint16)
    classes = np.array([0, *(annotation.class_index for annotation in annotations)], np.uint8)
    disputed = np.zeros((height, width), bool)
    for index in order:
        coverage, selected = drawn[index]
        window = owner[coverage.window]
        if overlap == "ignore":
            # Neighbors that merely touch also share a pixel now and then, but do not cover more than all of it.
            shared = selected & (total[coverage.window] > 1.001)
            disputed[coverage.window] |= shared & (window > 0) & (classes[window] != classes[index + 1])
        window[selected] = index + 1
    _close_seams(owner, total, [coverage for coverage, _ in drawn])
    mask = classes[owner]
    mask[disputed] = ignore_index
    keeps_id = np.array([False, *(annotation.is_instance for annotation in annotations)])
    return mask, np.where(keeps_id[owner] & ~disputed, owner, 0).astype(np.uint16)


def merge_masks(masks: Sequence[NDArray[np.uint8]], agreement: Agreement, ignore_index: int = 255) -> NDArray[np.uint8]:
    """Merges the masks of several annotators.

    Args:
        masks: (H, W) class indices each, 0 the background.
        agreement: `union` takes the class most of those who marked the pixel chose (ignore_index where two are level),
            `intersection` a class that everybody chose, `majority` a class, background included, that more than half
            chose (ignore_index where none is). A pixel that an annotator ignores has no vote of theirs.

    Returns:
        (H, W) class indices.
    """
    stack = np.stack(masks)
    present = [index for index in np.unique(stack) if index not in (0, ignore_index)]
    candidates = np.array([0, *present], np.uint8)
    votes = np.stack([(stack == index).sum(axis=0) for index in candidates])
    voters = votes.sum(axis=0)
    if agreement == "union":
        best, level = _winner(votes[1:]) if present else (np.zeros_like(voters), np.zeros_like(voters, bool))
        marked = votes[1:].sum(axis=0) > 0
        merged = np.where(marked, candidates[np.minimum(best + 1, len(present))], 0)
        merged = np.where(marked & level, ignore_index, merged)
    else:
        best, _ = _winner(votes)
        count = np.take_along_axis(votes, best[None], axis=0)[0]
        agreed = count == voters if agreement == "intersection" else 2 * count > voters
        merged = np.where(agreed, candidates[best], 0 if agreement == "intersection" else ignore_index)
    return np.where(voters > 0, merged, ignore_index).astype(np.uint8)


def _draw(annotation: Annotation, height: int, width: int) -> tuple[Coverage, NDArray[np.bool_]]:
    coverage = compute_coverage(annotation.polygons, height, width)
    if annotation.runs is None:
        return coverage, select_pixels(coverage.share)
    whole = decode_runs(annotation.runs, height, width)
    whole[coverage.window] |= select_pixels(coverage.share)
    # Only the rows and columns that it touches are kept: an image may hold thousands of regions.
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    if not len(rows):
        return Coverage(0, 0, np.zeros((0, 0))), np.zeros((0, 0), bool)
    part = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Coverage(int(rows[0]), int(columns[0]), part.astype(np.float64)), part


def _close_seams(owner: NDArray[np.uint16], total: NDArray[np.float32], coverages: Sequence[Coverage]) -> None:
    largest = np.zeros(owner.shape, np.float32)
    nearest = np.zeros(owner.shape, np.uint16)
    for index, coverage in enumerate(coverages, start=1):
        larger = coverage.share > largest[coverage.window]
        largest[coverage.window][larger] = coverage.share[larger]
        nearest[coverage.window][larger] = index
    seam = (owner == 0) & (total > 0.999)
    owner[seam] = nearest[seam]


def _winner(votes: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The row with most votes at each pixel, and whether another row has as many."""
    best = votes.argmax(axis=0)
    return best, (votes == votes.max(axis=0)).sum(axis=0) > 1

"""Mask and instance map of one micrograph, from its annotations or its mask files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import Annotation, IndexMask, Legend
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import load_index_image, load_rgba, to_channels
from steelgen.data.instances import MAX_INSTANCES, load_instance_ids
from steelgen.data.micrograph import Micrograph
from steelgen.data.palette import match_colors
from steelgen.data.rasterize import Coverage, compute_coverage, select_pixels
from steelgen.data.runlength import decode_runs
from steelgen.errors import InputError

Overlap = Literal["later", "smaller", "ignore"]
"""Which of two annotations gets a pixel that both cover: the later one, the smaller one, or neither (ignore_index)."""

Agreement = Literal["union", "intersection", "majority"]
"""Which pixels are foreground if annotators differ: marked by any of them, by all, or by more than half."""


def compose_mask(
    annotations: Sequence[Annotation], height: int, width: int, overlap: Overlap = "later", ignore_index: int = 255
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Rasterizes the annotations of one annotator.

    A pixel that several polygons share and cover completely together goes to the polygon with the largest share, so
    touching annotations leave no seam of background.

    Returns:
        mask: (height, width) class indices, 0 by default; instances: (height, width) ids, 1, 2, … in the order of the
        annotations, 0 by default.

    Raises:
        InputError: if run lengths exceed the image or there are more than 65,535 annotations.
    """
    if len(annotations) > MAX_INSTANCES:
        raise InputError(f"{len(annotations)} annotations in one image; the limit of instance maps is {MAX_INSTANCES}")
    regions = [_rasterize(annotation, height, width) for annotation in annotations]
    order = list(range(len(annotations)))
    if overlap == "smaller":
        order.sort(key=lambda index: -int(regions[index][1].sum()))
    total = np.zeros((height, width), np.float32)
    for coverage, _ in regions:
        total[coverage.window] += coverage.share
    owner = np.zeros((height, width), np.uint16)
    classes = np.array([0, *(annotation.class_index for annotation in annotations)], np.uint8)
    disputed = np.zeros((height, width), bool)
    for index in order:
        coverage, selected = regions[index]
        window = owner[coverage.window]
        if overlap == "ignore":
            # Neighbors that only touch may also share a pixel, but together do not cover more than all of it.
            shared = selected & (total[coverage.window] > 1.001)
            disputed[coverage.window] |= shared & (window > 0) & (classes[window] != classes[index + 1])
        window[selected] = index + 1
    _close_seams(owner, total, [coverage for coverage, _ in regions])
    mask = classes[owner]
    mask[disputed] = ignore_index
    keeps_id = np.array([False, *(annotation.is_instance for annotation in annotations)])
    return mask, np.where(keeps_id[owner] & ~disputed, owner, 0).astype(np.uint16)


def merge_masks(masks: Sequence[NDArray[np.uint8]], agreement: Agreement, ignore_index: int = 255) -> NDArray[np.uint8]:
    """Merges the masks of several annotators.

    Args:
        masks: (H, W) class indices each; 0 is the background.
        agreement: `union` selects the most frequent foreground class (ignore_index on a tie), `intersection` a class
            that all annotators chose, `majority` a class, including background, that more than half chose (ignore_index
            if there is none). Annotators have no vote on pixels that they ignore.

    Returns:
        (H, W) class indices.
    """
    stack = np.stack(masks)
    present = [index for index in np.unique(stack) if index not in (0, ignore_index)]
    candidates = np.array([0, *present], np.uint8)
    votes = np.stack([(stack == index).sum(axis=0) for index in candidates])
    voters = votes.sum(axis=0)
    if agreement == "union":
        foreground = votes[1:] if present else np.zeros_like(votes)
        most = foreground.max(axis=0)
        merged = candidates[np.minimum(foreground.argmax(axis=0) + 1, len(present))]
        merged = np.where((foreground == most).sum(axis=0) > 1, ignore_index, merged)
        merged = np.where(most > 0, merged, 0)
    else:
        most = votes.max(axis=0)
        agreed = most == voters if agreement == "intersection" else 2 * most > voters
        merged = np.where(agreed, candidates[votes.argmax(axis=0)], 0 if agreement == "intersection" else ignore_index)
    return np.where(voters > 0, merged, ignore_index).astype(np.uint8)


def load_mask_file(source: IndexMask, micrograph: Micrograph, info: DatasetInfo) -> NDArray[np.uint8]:
    """Reads a mask file of class indices, colors or object ids, as (H, W) class indices of the file's own size.

    Raises:
        InputError: if the file is unreadable, or has a value or color that is not a class.
    """
    if source.holds_objects:
        assert source.instances is not None
        return (load_instance_ids(source.instances) > 0).astype(np.uint8)
    if source.legend:
        return _load_colors(source, source.legend, micrograph)
    values = load_index_image(source.path)
    mask = source.lookup[values]
    unknown = (mask >= info.num_classes) & (mask != info.ignore_index)
    if unknown.any():
        raise InputError(f"{source.path}: value {values[unknown][0]} is not one of the {info.num_classes} classes")
    return mask


def _load_colors(source: IndexMask, legend: Legend, micrograph: Micrograph) -> NDArray[np.uint8]:
    rgba = load_rgba(source.path)
    matched = match_colors(rgba[..., :3], legend.colors, legend.tolerance)
    mask = np.array([*legend.class_indices, legend.unlabeled], np.uint8)[matched]
    unknown = matched < 0
    # A data bar that was copied with the image is cropped later.
    rows = min(micrograph.image.shape[0], len(rgba))
    unknown[rows:] = False
    unknown &= rgba[..., 3] > 0
    if unknown.any() and micrograph.image.shape[1] == rgba.shape[1]:
        copied = np.abs(to_channels(micrograph.image[:rows], 3).astype(np.int16) - rgba[:rows, :, :3]).max(axis=2)
        unknown[:rows] &= copied > legend.tolerance
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        color = ",".join(map(str, rgba[row, column, :3]))
        raise InputError(
            f"{source.path}: color {color} at ({column}, {row}) and {unknown.sum() - 1} more pixels match neither the "
            "legend nor the image; set --colors or --color-tolerance"
        )
    mask[rgba[..., 3] == 0] = legend.unlabeled
    return mask


def _rasterize(annotation: Annotation, height: int, width: int) -> tuple[Coverage, NDArray[np.bool_]]:
    coverage = compute_coverage(annotation.polygons, height, width)
    if annotation.runs is None:
        return coverage, select_pixels(coverage.share)
    whole = decode_runs(annotation.runs, height, width)
    whole[coverage.window] |= select_pixels(coverage.share)
    # Only the bounding box is kept: an image may have thousands of regions.
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

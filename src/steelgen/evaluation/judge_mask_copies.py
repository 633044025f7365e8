"""Copies of training masks among generated masks, by the search of `CopySearch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.copy_search import CopySearch, Match, cut_mask, list_copies
from steelgen.evaluation.intervals import bootstrap_interval
from steelgen.evaluation.iou import nanmean
from steelgen.evaluation.memorization import count_copies
from steelgen.evaluation.sets import Evidence, Judgment

SHOWN_PAIRS = 10


def judge_mask_copies(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
    """Searches the training masks for generated ones; the floor is measured on held-out masks.

    Masks that are not new are not searched, and details["reason"] says why.
    """
    searched, reason = _decide(evidence)
    if not searched:
        return [], {"searched": False, "reason": reason}, []
    limit = evidence.config.memorization.max_images
    generated, held_out = evidence.generated.masks, evidence.held_out.masks
    assert generated is not None
    assert held_out is not None
    generated, held_out = generated[:limit], held_out[:limit]
    report_progress(f"memorization: search of the training masks for {len(generated)} generated and {len(held_out)}")
    train, info = evidence.train_micrographs, evidence.info
    shown = replace(train, images=[to_levels(mask, info.num_classes) for mask in train.masks], digest="")
    search = CopySearch(shown, evidence.geometry, evidence.config.memorization.search_size, evidence.device)

    def measure(masks: NDArray[np.uint8]) -> tuple[list[Match], NDArray, NDArray]:
        matches = search.find(np.stack([to_levels(mask, info.num_classes) for mask in masks]))
        places = [
            cut_mask(train, match, train.fit_geometry(match.micrograph, evidence.geometry).crop_size, mask.shape[0])
            for match, mask in zip(matches, masks, strict=True)
        ]
        agreement = [measure_agreement(*pair, info.num_classes) for pair in zip(masks, places, strict=True)]
        return matches, np.array([match.ratio for match in matches]), np.array(agreement)

    matches, ratios, agreement = measure(generated)
    _, reference_ratios, reference_agreement = measure(held_out)
    compared = f"generated vs every place in {evidence.train.name} (floor: {evidence.held_out.name})"
    copies = count_copies("mask", compared, ratios, reference_ratios, evidence.config.seed)
    copied, floor = copies.value, copies.floor or 0.0
    equal = replace(
        copies,
        metric="equal pixels at the nearest place, masks",
        value=nanmean(agreement),
        floor=nanmean(reference_agreement),
        interval=bootstrap_interval(agreement, evidence.config.seed),
    )
    details = {
        "searched": True,
        "ratio": ratios,
        "held_out_ratio": reference_ratios,
        "equal_pixels": agreement,
        "held_out_equal_pixels": reference_agreement,
        **list_copies(matches, evidence.generated.names, train.stems, SHOWN_PAIRS, equal_pixels=agreement),
    }
    warnings = []
    if copied > floor:
        warnings.append(
            f"{100 * copied:.1f} % of {len(generated)} generated masks are copies of places in the training masks; "
            f"of the held-out masks {100 * floor:.1f} %"
        )
    return [copies, equal], details, warnings


def to_levels(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """Converts class indices (H, W) to evenly spaced gray levels from 0 to 255; ignored pixels are 127.

    Equal masks are equal images; how far different ones are depends on the order of the classes.
    """
    table = np.full(256, 127, np.uint8)
    table[:num_classes] = np.rint(np.linspace(0, 255, num_classes))
    return table[mask]


def measure_agreement(first: NDArray[np.uint8], second: NDArray[np.uint8], num_classes: int) -> float:
    """Share of equal pixels of two masks (H, W), without those ignored in either; NaN if there are none."""
    known = (first < num_classes) & (second < num_classes)
    return float((first == second)[known].mean()) if known.any() else float("nan")


def _decide(evidence: Evidence) -> tuple[bool, str]:
    """Whether masks are searched, and if not, why."""
    if evidence.generated.masks is None:
        return False, "there are no masks"
    wanted = evidence.config.memorization.search_masks
    if wanted is None:
        return evidence.new_masks, "the masks were not made by a generator or by rules"
    return wanted, "memorization.search_masks is false"

"""Copies of details: patches of generated images at full resolution, by the search of `CopySearch`.

The search of whole images shrinks them to `search_size`, which hides what the last stage of a cascade drew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.copy_search import CopySearch, list_copies
from steelgen.evaluation.memorization import count_copies
from steelgen.evaluation.sets import Evidence, Judgment

MAX_IMAGES = 32
"""Images searched of each set: a search at full resolution takes seconds."""
_SHOWN_PAIRS = 10
_STREAM = 17
"""Separates the places of patches from other random numbers of the seed."""


def judge_detail_copies(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
    """Searches the training micrographs for a patch of each image; the floor is measured on held-out images.

    Images that are not searched have details["reason"].
    """
    config, geometry = evidence.config.memorization, evidence.geometry
    edge = config.search_size
    wanted = evidence.cascaded if config.search_details is None else config.search_details
    if not wanted or geometry.image_size < 2 * edge:
        small = f"images of {geometry.image_size} px are shrunk less than twice"
        reason = small if wanted else "the images are not of a cascade"
        return [], {"searched": False, "reason": reason}, []
    count = min(config.max_images, MAX_IMAGES)
    generated, held_out = evidence.generated.images[:count], evidence.held_out.images[:count]
    report_progress(f"memorization: search at full resolution for details of {len(generated)} and {len(held_out)}")
    crop_size = max(1, round(geometry.crop_size * edge / geometry.image_size))
    fine = replace(geometry, image_size=edge, crop_size=crop_size)
    search = CopySearch(evidence.train_micrographs, fine, edge, evidence.device)
    rng = np.random.default_rng((evidence.config.seed, _STREAM))
    places = rng.integers(geometry.image_size - edge + 1, size=(count, 2))

    def find(images: NDArray[np.uint8]) -> tuple[list[Any], NDArray[np.float64]]:
        patches = [
            image[top : top + edge, left : left + edge] for image, (top, left) in zip(images, places, strict=False)
        ]
        matches = search.find(np.stack(patches))
        return matches, np.array([match.ratio for match in matches])

    (matches, ratios), (_, reference) = find(generated), find(held_out)
    compared = f"patches of {edge} px vs every place in {evidence.train.name} (floor: {evidence.held_out.name})"
    figure = count_copies("detail", compared, ratios, reference, evidence.config.seed)
    copied, floor = figure.value, figure.floor or 0.0
    warnings = []
    if copied > floor:
        warnings.append(
            f"{100 * copied:.1f} % of {len(generated)} generated images have a detail copied from a training "
            f"micrograph; of the held-out images {100 * floor:.1f} %"
        )
    stems = evidence.train_micrographs.stems
    details = {
        "searched": True,
        "edge": edge,
        "ratio": ratios,
        "held_out_ratio": reference,
        **list_copies(matches, evidence.generated.names, stems, _SHOWN_PAIRS),
    }
    return [figure], details, warnings

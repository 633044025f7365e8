"""The memorization section: distances of generated images to the training set, compared with held-out images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.placement import apply_symmetry
from steelgen.evaluation.copy_search import CopySearch, Match, list_copies
from steelgen.evaluation.features import build_extractor, compute_cached_features, compute_features
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import wilson_interval
from steelgen.evaluation.judge_detail_copies import judge_detail_copies
from steelgen.evaluation.judge_mask_copies import judge_mask_copies
from steelgen.evaluation.memorization import bootstrap_ct, compute_authenticity, compute_ct, count_copies, find_nearest
from steelgen.evaluation.sets import Evidence, Judgment

SHOWN_PAIRS = 20

_Distances = tuple[NDArray, NDArray]
"""Distances of each image to its nearest training image, and of that one to its own nearest neighbor."""


def judge_memorization(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
    """Finds the nearest training images in pixels and in features, and for new masks the nearest training masks; the
    floor is measured on held-out images."""
    config = evidence.config.memorization
    generated = evidence.generated.images[: config.max_images]
    held_out = evidence.held_out.images[: config.max_images]
    report_progress(
        f"memorization: search of the training set for {len(generated)} generated and {len(held_out)} held-out images"
    )
    search = CopySearch(evidence.train_micrographs, evidence.geometry, config.search_size, evidence.device)

    def measure(images: NDArray[np.uint8]) -> tuple[list[Match], _Distances, NDArray]:
        matches = search.find(images)
        places = np.stack([search.cut(match, evidence.geometry.image_size) for match in matches])
        nearest, own = (
            np.array([match.distance for match in part]) for part in (matches, search.find(places, own=matches))
        )
        return matches, (nearest, own), np.array([match.ratio for match in matches])

    matches, distances, ratios = measure(generated)
    _, reference, reference_ratios = measure(held_out)
    shared: dict[str, Any] = {
        "section": "memorization",
        "compared": f"generated vs every place in {evidence.train.name} (floor: {evidence.held_out.name})",
        "n": (len(generated), len(held_out)),
        "seed": evidence.config.seed,
    }
    figures = [
        count_copies("", shared["compared"], ratios, reference_ratios, shared["seed"]),
        *_compare_distances("pixels", distances, reference, shared),
        *_compare_features(evidence, generated, held_out, shared),
    ]
    details: dict[str, Any] = {
        "pixel_distance": distances[0],
        "pixel_ratio": ratios,
        "held_out_pixel_distance": reference[0],
        "held_out_pixel_ratio": reference_ratios,
        **list_copies(matches, evidence.generated.names, evidence.train_micrographs.stems, SHOWN_PAIRS),
    }
    mask_figures, details["masks"], warnings = judge_mask_copies(evidence, report_progress)
    detail_figures, details["details"], more = judge_detail_copies(evidence, report_progress)
    return figures + mask_figures + detail_figures, details, warnings + more


def _compare_features(
    evidence: Evidence, generated: NDArray[np.uint8], held_out: NDArray[np.uint8], shared: dict[str, Any]
) -> list[Figure]:
    """Authenticity and C_T on the first kind of features; of 8 flips and rotations of an image the nearest counts."""
    settings = evidence.config.features
    extractor = build_extractor(settings.kinds[0], settings.inception_weights, evidence.cache_dir, evidence.device)
    library = compute_cached_features(evidence.train.images, extractor, evidence.cache_dir, settings.batch_size)
    own, _ = find_nearest(library, library, skip_self=True)

    def turn(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([apply_symmetry(image, symmetry) for image in images for symmetry in range(8)])

    def measure(features: NDArray) -> _Distances:
        distances, indices = find_nearest(features.reshape(-1, 8, features.shape[1]), library)
        return distances, own[indices]

    features = compute_features(turn(generated), extractor, settings.batch_size)
    reference = compute_cached_features(turn(held_out), extractor, evidence.cache_dir, settings.batch_size)
    compared = f"generated vs {len(library)} {evidence.train.name} crops (floor: {evidence.held_out.name})"
    return _compare_distances(extractor.name, measure(features), measure(reference), {**shared, "compared": compared})


def _compare_distances(space: str, generated: _Distances, held_out: _Distances, shared: dict[str, Any]) -> list[Figure]:
    """Authenticity and C_T."""
    authenticity = compute_authenticity(*generated)
    return [
        Figure(
            metric=f"authenticity, {space}",
            value=authenticity,
            floor=compute_authenticity(*held_out),
            better="higher",
            interval=wilson_interval(authenticity, len(generated[0])),
            **shared,
        ),
        Figure(
            metric=f"C_T, {space} (below -3: copying)",
            value=compute_ct(generated[0], held_out[0]),
            floor=0.0,
            better="near floor",
            interval=bootstrap_ct(generated[0], held_out[0], shared["seed"]),
            **shared,
        ),
    ]

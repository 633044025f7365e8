"""The judgment of memorization: are generated images nearer to the training set than unseen real ones are?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.placement import apply_symmetry
from steelgen.evaluation.copy_search import CopySearch, Match
from steelgen.evaluation.evidence import Evidence, Judgment
from steelgen.evaluation.features import build_extractor, compute_cached_features, compute_features
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import wilson_interval
from steelgen.evaluation.memorization import (
    COPY_RATIO,
    bootstrap_ct,
    compute_authenticity,
    compute_ct,
    find_nearest,
)

SHOWN_PAIRS = 20


def judge_memorization(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
    """Nearest training images in pixels (every place and turn) and in features, with held-out images as the floor."""
    config = evidence.config.memorization
    generated = evidence.generated.images[: config.max_images]
    held_out = evidence.held_out.images[: config.max_images]
    report_progress(f"memorization: {len(generated)} generated and {len(held_out)} held-out images in the training set")
    search = CopySearch(evidence.train_micrographs, evidence.geometry, config.search_size, evidence.device)
    matches, unseen = search.find(generated), search.find(held_out)
    distances, unseen_distances = _distances(matches), _distances(unseen)
    own, unseen_own = (_find_own_neighbors(search, part, evidence.geometry.image_size) for part in (matches, unseen))
    ratios, unseen_ratios = (np.array([match.ratio for match in part]) for part in (matches, unseen))
    shared: dict[str, Any] = {
        "section": "memorization",
        "compared": f"generated vs every place in {evidence.train.name} (floor: {evidence.held_out.name})",
        "n": (len(generated), len(held_out)),
        "seed": evidence.config.seed,
    }
    copied = float((ratios < COPY_RATIO).mean())
    figures = [
        Figure(
            metric="copies (share with d1/d2 < 1/3)",
            value=copied,
            floor=float((unseen_ratios < COPY_RATIO).mean()),
            better="lower",
            interval=wilson_interval(copied, len(generated)),
            **shared,
        ),
        *_compare_distances("pixels", (distances, own), (unseen_distances, unseen_own), shared),
        *_judge_features(evidence, generated, held_out),
    ]
    closest = np.argsort(ratios)[:SHOWN_PAIRS]
    details = {
        "pixel_distance": distances,
        "pixel_ratio": ratios,
        "held_out_pixel_distance": unseen_distances,
        "held_out_pixel_ratio": unseen_ratios,
        "copies": [evidence.generated.names[index] for index in np.flatnonzero(ratios < COPY_RATIO)],
        "closest": [
            {
                "index": int(index),
                "generated": evidence.generated.names[index],
                "micrograph": evidence.train_micrographs.stems[matches[index].micrograph],
                "distance": matches[index].distance,
                "ratio": matches[index].ratio,
                "top": matches[index].top,
                "left": matches[index].left,
                "symmetry": matches[index].symmetry,
            }
            for index in closest
        ],
    }
    return figures, details, []


def _judge_features(evidence: Evidence, generated: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> list[Figure]:
    """Authenticity and C_T on the first kind of features, with the nearest of 8 flips and rotations of each image."""
    settings = evidence.config.features
    extractor = build_extractor(settings.kinds[0], settings.inception_weights, evidence.cache_dir, evidence.device)
    library = compute_cached_features(evidence.train.images, extractor, evidence.cache_dir, settings.batch_size)
    own, _ = find_nearest(library, library, skip_self=True)

    def turn(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([apply_symmetry(image, symmetry) for image in images for symmetry in range(8)])

    features = compute_features(turn(generated), extractor, settings.batch_size)
    unseen = compute_cached_features(turn(held_out), extractor, evidence.cache_dir, settings.batch_size)
    distances, indices = find_nearest(features.reshape(len(generated), 8, -1), library)
    unseen_distances, unseen_indices = find_nearest(unseen.reshape(len(held_out), 8, -1), library)
    shared: dict[str, Any] = {
        "section": "memorization",
        "compared": f"generated vs {len(library)} {evidence.train.name} crops (floor: {evidence.held_out.name})",
        "n": (len(generated), len(held_out)),
        "seed": evidence.config.seed,
    }
    return _compare_distances(
        extractor.name, (distances, own[indices]), (unseen_distances, own[unseen_indices]), shared
    )


def _compare_distances(
    what: str,
    generated: tuple[NDArray, NDArray],
    unseen: tuple[NDArray, NDArray],
    shared: dict[str, Any],
) -> list[Figure]:
    """Authenticity and C_T from distances: of each image to its nearest training image, of that one to its own."""
    authenticity = compute_authenticity(*generated)
    return [
        Figure(
            metric=f"authenticity, {what}",
            value=authenticity,
            floor=compute_authenticity(*unseen),
            better="higher",
            interval=wilson_interval(authenticity, len(generated[0])),
            **shared,
        ),
        Figure(
            metric=f"C_T, {what} (below -3: copying)",
            value=compute_ct(generated[0], unseen[0]),
            floor=0.0,
            better="near floor",
            interval=bootstrap_ct(generated[0], unseen[0], shared["seed"]),
            **shared,
        ),
    ]


def _find_own_neighbors(search: CopySearch, matches: list[Match], size: int) -> NDArray[np.float64]:
    """Distance of each match's place to the nearest place that does not overlap it."""
    places = np.stack([search.cut(match, size) for match in matches])
    return _distances(search.find(places, own=matches))


def _distances(matches: list[Match]) -> NDArray[np.float64]:
    return np.array([match.distance for match in matches])

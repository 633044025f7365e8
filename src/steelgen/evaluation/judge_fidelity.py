"""The judgement of fidelity: distances between generated and real images on named features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steelgen.evaluation.evidence import Evidence, Section
from steelgen.evaluation.features import (
    FeatureExtractor,
    build_extractor,
    compute_cached_features,
    compute_features,
)
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid
from steelgen.evaluation.figures import Figure


def judge_fidelity(evidence: Evidence, report_progress: Callable[[str], None]) -> Section:
    """Fréchet distance and KID on every kind of features, against held-out and training images."""
    config, seed = evidence.config, evidence.config.seed
    figures, warnings = [], []
    for kind in config.features.kinds:
        extractor = build_extractor(kind, config.features.inception_weights, evidence.cache_dir, evidence.device)
        report_progress(
            f"{extractor.name} features: {len(evidence.generated)} generated, {len(evidence.train)} real images"
        )
        features = _compute_all_features(evidence, extractor)
        smallest, dimensions = min(map(len, features.values())), features["generated"].shape[1]
        if smallest <= dimensions:
            warnings.append(
                f"{extractor.frechet_name}: {smallest} images for {dimensions} features: the covariance is "
                "singular and the distance biased upwards; compare it with its floor only, and trust KID"
            )
        for reference, floor_sets in evidence.comparisons:
            pair = features["generated"], features[reference.name]
            floor_pair = tuple(features[part.name] for part in floor_sets) if floor_sets else None
            kid, spread = compute_kid(pair[0], pair[1], seed=seed)
            shared: dict[str, Any] = {
                "section": "fidelity",
                "compared": f"generated vs {reference.name}",
                "n": (len(pair[0]), len(pair[1])),
                "seed": seed,
                "better": "lower",
            }
            figures.append(
                Figure(
                    metric=extractor.frechet_name,
                    value=compute_frechet_distance(*pair),
                    floor=compute_frechet_distance(*floor_pair) if floor_pair else None,
                    **shared,
                )
            )
            figures.append(
                Figure(
                    metric=f"KID-{extractor.name}",
                    value=kid,
                    spread=spread,
                    floor=compute_kid(floor_pair[0], floor_pair[1], seed=seed)[0] if floor_pair else None,
                    **shared,
                )
            )
    floors = {
        reference.name: f"{pair[0].name} vs {pair[1].name}" if pair else None
        for reference, pair in evidence.comparisons
    }
    return figures, {"floors": floors}, warnings


def _compute_all_features(evidence: Evidence, extractor: FeatureExtractor) -> dict[str, Any]:
    batch_size = evidence.config.features.batch_size
    real = [evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    features = {
        part.name: compute_cached_features(part.images, extractor, evidence.cache_dir, batch_size) for part in real
    }
    return {**features, "generated": compute_features(evidence.generated.images, extractor, batch_size)}

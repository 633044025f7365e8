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
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid, compute_precision_recall
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.grey import (
    compute_grey_kl,
    compute_grey_wasserstein,
    compute_histogram,
    compute_power_spectrum,
    compute_spectrum_distance,
)


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
            # Real images come first in both: what is generated is judged by the real manifold.
            measured = compute_precision_recall(pair[1], pair[0])
            floors_pr = compute_precision_recall(floor_pair[1], floor_pair[0]) if floor_pair else (None, None)
            for name, value, floor in zip(("precision", "recall"), measured, floors_pr, strict=True):
                metric = f"{name}-{extractor.name}"
                figures.append(Figure(metric=metric, value=value, floor=floor, **{**shared, "better": "higher"}))
    grey_figures, spectra = _judge_grey_levels(evidence)
    floors = {
        reference.name: f"{pair[0].name} vs {pair[1].name}" if pair else None
        for reference, pair in evidence.comparisons
    }
    return figures + grey_figures, {"floors": floors, "power_spectra": spectra}, warnings


def _judge_grey_levels(evidence: Evidence) -> tuple[list[Figure], dict[str, Any]]:
    """Grey-level histograms and power spectra; the latter also as curves."""
    sets = [evidence.generated, evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    histograms = {part.name: compute_histogram(part.images) for part in sets}
    spectra = {part.name: compute_power_spectrum(part.images) for part in sets}
    figures = []
    for reference, floor_sets in evidence.comparisons:
        metrics: tuple[tuple[str, Callable[..., float], dict[str, Any]], ...] = (
            ("grey-level KL (nats)", compute_grey_kl, histograms),
            ("grey-level W1 (levels)", compute_grey_wasserstein, histograms),
            ("power spectrum RMS (decades)", compute_spectrum_distance, spectra),
        )
        for metric, compute, values in metrics:
            floor = compute(values[floor_sets[1].name], values[floor_sets[0].name]) if floor_sets else None
            figures.append(
                Figure(
                    section="fidelity",
                    metric=metric,
                    compared=f"generated vs {reference.name}",
                    value=compute(values[reference.name], values["generated"]),
                    floor=floor,
                    n=(len(evidence.generated), len(reference)),
                    seed=evidence.config.seed,
                    better="lower",
                )
            )
    return figures, {name: spectra[name] for name in ("generated", evidence.held_out.name, evidence.train.name)}


def _compute_all_features(evidence: Evidence, extractor: FeatureExtractor) -> dict[str, Any]:
    batch_size = evidence.config.features.batch_size
    real = [evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    features = {
        part.name: compute_cached_features(part.images, extractor, evidence.cache_dir, batch_size) for part in real
    }
    return {**features, "generated": compute_features(evidence.generated.images, extractor, batch_size)}

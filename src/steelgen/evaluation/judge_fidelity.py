"""The fidelity section: distances between generated and real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from steelgen.evaluation.features import FeatureExtractor, build_extractor, compute_cached_features, compute_features
from steelgen.evaluation.fidelity import (
    VARIATION,
    compute_frechet_distance,
    compute_frechet_error,
    compute_gray_kl,
    compute_gray_wasserstein,
    compute_histograms,
    compute_kid,
    compute_kid_error,
    compute_power_spectra,
    compute_precision_recall,
    compute_spectrum_distance,
    compute_spread_ratios,
    compute_variation,
)
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import center_interval, normal_interval, resample_weights, wilson_interval
from steelgen.evaluation.sets import Evidence, ImageSet, Judgment

_Pair = tuple[NDArray, NDArray]


def judge_fidelity(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
    """Computes feature, gray-level and spectrum distances to the held-out and the training images."""
    config, figures, warnings = evidence.config, [], []
    batch_size = config.features.batch_size
    real = [evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    for kind in config.features.kinds:
        extractor = build_extractor(kind, config.features.inception_weights, evidence.cache_dir, evidence.device)
        report_progress(
            f"{extractor.name} features: {len(evidence.generated)} generated, {len(evidence.train)} real images"
        )
        features = {
            part.name: compute_cached_features(part.images, extractor, evidence.cache_dir, batch_size) for part in real
        }
        features["generated"] = compute_features(evidence.generated.images, extractor, batch_size)
        smallest, dimensions = min(map(len, features.values())), features["generated"].shape[1]
        if smallest <= dimensions:
            warnings.append(
                f"{extractor.frechet_name}: {smallest} images for {dimensions} features, so the covariance is singular "
                "and the distance biased upward; compare it only with its floor and prefer KID"
            )
        for reference, floor_sets in evidence.comparisons:
            pair = features["generated"], features[reference.name]
            floor_pair = (features[floor_sets[0].name], features[floor_sets[1].name]) if floor_sets else None
            shared = _describe_comparison(evidence, reference)
            figures += _compare_features(extractor, pair, floor_pair, shared)
    gray_figures, spectra = _compare_gray_levels(evidence)
    floors = {
        reference.name: f"{pair[0].name} vs {pair[1].name}" if pair else None
        for reference, pair in evidence.comparisons
    }
    return figures + gray_figures, {"floors": floors, "power_spectra": spectra}, warnings


def _describe_comparison(evidence: Evidence, reference: ImageSet) -> dict[str, Any]:
    return {
        "section": "fidelity",
        "compared": f"generated vs {reference.name}",
        "n": (len(evidence.generated), len(reference)),
        "seed": evidence.config.seed,
    }


def _compare_features(
    extractor: FeatureExtractor, pair: _Pair, floor_pair: _Pair | None, shared: dict[str, Any]
) -> list[Figure]:
    """Fréchet distance, KID, precision and recall of generated and real features."""
    distance = compute_frechet_distance(*pair)
    kid, spread = compute_kid(*pair, seed=shared["seed"])
    # The real set comes first in both: generated images are judged by the real manifold.
    precision, recall = compute_precision_recall(pair[1], pair[0])
    floors: tuple[float | None, ...] = (None,) * 4
    if floor_pair:
        floor_kid, _ = compute_kid(*floor_pair, seed=shared["seed"])
        floors = compute_frechet_distance(*floor_pair), floor_kid, *compute_precision_recall(*floor_pair[::-1])
    rows = [
        (
            extractor.frechet_name,
            "lower",
            distance,
            normal_interval(distance, compute_frechet_error(*pair), lowest=0.0),
        ),
        (f"KID-{extractor.name}", "lower", kid, normal_interval(kid, compute_kid_error(*pair))),
        (f"precision-{extractor.name}", "higher", precision, wilson_interval(precision, shared["n"][0])),
        (f"recall-{extractor.name}", "higher", recall, wilson_interval(recall, shared["n"][1])),
    ]
    return [
        Figure(
            metric=metric,
            value=value,
            floor=floor,
            better=better,
            interval=interval,
            spread=spread if metric.startswith("KID-") else None,
            **shared,
        )
        for (metric, better, value, interval), floor in zip(rows, floors, strict=True)
    ]


def _compare_gray_levels(evidence: Evidence) -> tuple[list[Figure], dict[str, Any]]:
    """Distances of gray-level histograms and power spectra, spreads over images, and the mean spectra by set."""
    sets = [evidence.generated, evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    histograms = {part.name: compute_histograms(part.images) for part in sets}
    # Divided by N, so that spectra, like histograms, are summed over images.
    spectra = {part.name: compute_power_spectra(part.images) / len(part) for part in sets}
    variation = {part.name: compute_variation(part.images) for part in sets}
    metrics: list[tuple[str, str, Callable[..., NDArray], dict[str, NDArray]]] = [
        ("gray-level KL (nats)", "lower", compute_gray_kl, histograms),
        ("gray-level W1 (levels)", "lower", compute_gray_wasserstein, histograms),
        ("power spectrum RMS (decades)", "lower", compute_spectrum_distance, spectra),
    ]
    for index, value in enumerate(VARIATION):
        by_image = {name: each[:, index] for name, each in variation.items()}
        metrics.append((f"spread of {value} (ratio)", "near floor", compute_spread_ratios, by_image))
    figures, weights = [], resample_weights(len(evidence.generated), evidence.config.seed)
    for reference, floor_sets in evidence.comparisons:
        real_weights = resample_weights(len(reference), evidence.config.seed, stream=1)
        for metric, better, compute, by_image in metrics:
            values = compute(real_weights @ by_image[reference.name], weights @ by_image["generated"])
            floor = floor_sets and compute(by_image[floor_sets[1].name].sum(0), by_image[floor_sets[0].name].sum(0))
            figures.append(
                Figure(
                    metric=metric,
                    value=float(values[0]),
                    floor=None if floor is None else float(floor),
                    better=better,
                    interval=center_interval(values, lowest=0.0),
                    **_describe_comparison(evidence, reference),
                )
            )
    shown = ("generated", evidence.held_out.name, evidence.train.name)
    return figures, {name: spectra[name].sum(axis=0) for name in shown}

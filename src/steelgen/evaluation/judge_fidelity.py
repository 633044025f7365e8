"""The judgment of fidelity: distances between generated and real images on named features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from steelgen.evaluation.evidence import Evidence, Judgment
from steelgen.evaluation.features import (
    FeatureExtractor,
    build_extractor,
    compute_cached_features,
    compute_features,
)
from steelgen.evaluation.fidelity import (
    compute_frechet_distance,
    compute_frechet_error,
    compute_kid,
    compute_kid_error,
    compute_precision_recall,
)
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.gray import (
    compute_gray_kl,
    compute_gray_wasserstein,
    compute_histograms,
    compute_power_spectra,
    compute_spectrum_distance,
)
from steelgen.evaluation.intervals import center_interval, normal_interval, resample_weights, wilson_interval


def judge_fidelity(evidence: Evidence, report_progress: Callable[[str], None]) -> Judgment:
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
            shared: dict[str, Any] = {
                "section": "fidelity",
                "compared": f"generated vs {reference.name}",
                "n": (len(pair[0]), len(pair[1])),
                "seed": seed,
            }
            figures += _judge_features(extractor, pair, floor_pair, shared)
    gray_figures, spectra = _judge_gray_levels(evidence)
    floors = {
        reference.name: f"{pair[0].name} vs {pair[1].name}" if pair else None
        for reference, pair in evidence.comparisons
    }
    return figures + gray_figures, {"floors": floors, "power_spectra": spectra}, warnings


def _judge_features(
    extractor: FeatureExtractor,
    pair: tuple[NDArray, NDArray],
    floor_pair: tuple[NDArray, NDArray] | None,
    shared: dict[str, Any],
) -> list[Figure]:
    """Fréchet distance, KID, precision and recall of generated and real features."""
    distance = compute_frechet_distance(*pair)
    kid, spread = compute_kid(*pair, seed=shared["seed"])
    # Real images come first in both: what is generated is judged by the real manifold.
    measured = compute_precision_recall(pair[1], pair[0])
    floors = compute_precision_recall(floor_pair[1], floor_pair[0]) if floor_pair else (None, None)
    return [
        Figure(
            metric=extractor.frechet_name,
            value=distance,
            floor=compute_frechet_distance(*floor_pair) if floor_pair else None,
            better="lower",
            interval=normal_interval(distance, compute_frechet_error(*pair), lowest=0.0),
            **shared,
        ),
        Figure(
            metric=f"KID-{extractor.name}",
            value=kid,
            spread=spread,
            floor=compute_kid(*floor_pair, seed=shared["seed"])[0] if floor_pair else None,
            better="lower",
            interval=normal_interval(kid, compute_kid_error(*pair)),
            **shared,
        ),
        *(
            Figure(
                metric=f"{name}-{extractor.name}",
                value=value,
                floor=floor,
                better="higher",
                interval=wilson_interval(value, count),
                **shared,
            )
            for name, value, floor, count in zip(("precision", "recall"), measured, floors, shared["n"], strict=True)
        ),
    ]


def _judge_gray_levels(evidence: Evidence) -> tuple[list[Figure], dict[str, Any]]:
    """Gray-level histograms and power spectra; the latter also as curves."""
    sets = [evidence.generated, evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    histograms = {part.name: compute_histograms(part.images) for part in sets}
    # Each image's share in the mean of its set: both kinds are then summed over images.
    spectra = {part.name: compute_power_spectra(part.images) / len(part) for part in sets}
    metrics: tuple[tuple[str, Callable[..., NDArray], dict[str, NDArray]], ...] = (
        ("gray-level KL (nats)", compute_gray_kl, histograms),
        ("gray-level W1 (levels)", compute_gray_wasserstein, histograms),
        ("power spectrum RMS (decades)", compute_spectrum_distance, spectra),
    )
    seed, figures = evidence.config.seed, []
    drawn = resample_weights(len(evidence.generated), seed)
    for reference, floor_sets in evidence.comparisons:
        resampled_real = resample_weights(len(reference), seed, stream=1)
        for metric, compute, by_image in metrics:
            values = compute(resampled_real @ by_image[reference.name], drawn @ by_image["generated"])
            floor = floor_sets and compute(by_image[floor_sets[1].name].sum(0), by_image[floor_sets[0].name].sum(0))
            figures.append(
                Figure(
                    section="fidelity",
                    metric=metric,
                    compared=f"generated vs {reference.name}",
                    value=float(values[0]),
                    floor=None if floor is None else float(floor),
                    n=(len(evidence.generated), len(reference)),
                    seed=seed,
                    better="lower",
                    interval=center_interval(values, lowest=0.0),
                )
            )
    shown = ("generated", evidence.held_out.name, evidence.train.name)
    return figures, {name: spectra[name].sum(axis=0) for name in shown}


def _compute_all_features(evidence: Evidence, extractor: FeatureExtractor) -> dict[str, Any]:
    batch_size = evidence.config.features.batch_size
    real = [evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    features = {
        part.name: compute_cached_features(part.images, extractor, evidence.cache_dir, batch_size) for part in real
    }
    return {**features, "generated": compute_features(evidence.generated.images, extractor, batch_size)}

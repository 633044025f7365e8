"""The judgement of microstructure: the same descriptors of generated and of real masks, class by class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steelgen.evaluation.agreement import nanmean
from steelgen.evaluation.evidence import Evidence, Section
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.microstructure import (
    ISLAND_PROPERTIES,
    Phase,
    compute_axial_wasserstein,
    compute_boundary_density,
    compute_chords,
    compute_grain_size_number,
    compute_islands,
    compute_lineal_path,
    compute_mean_intercept,
    compute_phase_fractions,
    compute_s2,
)

Descriptors = dict[str, Any]


def judge_microstructure(evidence: Evidence, seen: dict[str, NDArray[np.uint8]]) -> Section:
    """Descriptors of the images through the segmenter, and of the masks where there are any, against held-out ones.

    Both sides of a comparison come from the same source, so that the segmenter's own errors cancel to first order.
    The floor puts the real training crops in the place of the generated ones.

    Args:
        evidence: the sets.
        seen: from `see_masks`.
    """
    config, names = evidence.config, evidence.info.class_names
    pixel_size = evidence.geometry.scale_pixel_size(evidence.info.pixel_size_um)
    sources: dict[str, dict[str, NDArray[np.uint8]]] = {"images": seen}
    if evidence.generated.masks is not None:
        sets = (evidence.generated, evidence.held_out, evidence.train)
        sources["masks"] = {part.name: part.masks for part in sets if part.masks is not None}
    figures: list[Figure] = []
    details: dict[str, Any] = {"class_names": names, "pixel_size_um": pixel_size}
    for source, masks in sources.items():
        limited = {name: stack[: config.microstructure.max_images] for name, stack in masks.items()}
        described = {
            name: [describe_phase(stack == index, pixel_size) for index in range(len(names))]
            for name, stack in limited.items()
        }
        generated, held_out, train = (
            described[name] for name in ("generated", evidence.held_out.name, evidence.train.name)
        )
        details[source] = {"generated": generated, "held_out": held_out, "train": train}
        for metric, compute in _DISTANCES.items():
            per_class = [compute(*pair) for pair in zip(generated, held_out, strict=True)]
            floors = [compute(*pair) for pair in zip(train, held_out, strict=True)]
            details[source].setdefault("distances", {})[metric] = {"generated": per_class, "floor": floors}
            figures.append(
                Figure(
                    section="microstructure",
                    metric=f"{metric} of {source}",
                    compared=f"generated vs {evidence.held_out.name}, mean of classes",
                    value=nanmean(np.array(per_class)),
                    floor=nanmean(np.array(floors)),
                    n=(len(limited["generated"]), len(limited[evidence.held_out.name])),
                    seed=config.seed,
                    better="lower",
                )
            )
    # Every island's and chord's value would swell the file; their distributions stay as deciles.
    for source in sources:
        for part in ("generated", "held_out", "train"):
            details[source][part] = [_summarise(descriptors) for descriptors in details[source][part]]
    return figures, details, []


def describe_phase(phase: Phase, pixel_size_um: float | None = None) -> Descriptors:
    """All descriptors of one class.

    Args:
        phase: (N, S, S) bool.
        pixel_size_um: edge of a pixel of these masks, where known.

    Returns:
        Numbers, curves (`s2`, `lineal_path`) and samples (`chords`, `islands`); lengths in px, with
        `mean_intercept_um` and `grain_size_number` where the pixel size is known.
    """
    reach = phase.shape[1] // 2
    islands = compute_islands(phase)
    intercept = compute_mean_intercept(phase)
    described = {
        "phase_fraction": float(compute_phase_fractions(phase).mean()),
        "s2": compute_s2(phase, reach),
        "lineal_path": compute_lineal_path(phase, reach),
        "chords": compute_chords(phase),
        "mean_intercept": intercept,
        "boundary_density": float(compute_boundary_density(phase).mean()),
        "islands": islands,
        "islands_per_megapixel": 1e6 * len(islands["area"]) / phase.size,
    }
    if pixel_size_um is not None:
        described["mean_intercept_um"] = intercept * pixel_size_um
        described["grain_size_number"] = compute_grain_size_number(intercept, pixel_size_um)
    return described


def _relative_l1(key: str) -> Callable[[Descriptors, Descriptors], float]:
    def compute(generated: Descriptors, real: Descriptors) -> float:
        scale = float(np.abs(real[key]).sum())
        return float(np.abs(np.subtract(generated[key], real[key])).sum()) / scale if scale else math.nan

    return compute


def _relative(key: str) -> Callable[[Descriptors, Descriptors], float]:
    def compute(generated: Descriptors, real: Descriptors) -> float:
        return abs(generated[key] - real[key]) / real[key] if real[key] else math.nan

    return compute


def _wasserstein(take: Callable[[Descriptors], NDArray]) -> Callable[[Descriptors, Descriptors], float]:
    def compute(generated: Descriptors, real: Descriptors) -> float:
        first, second = take(generated), take(real)
        return float(scipy.stats.wasserstein_distance(first, second)) if len(first) and len(second) else math.nan

    return compute


def _of_islands(name: str) -> Callable[[Descriptors], NDArray]:
    return lambda described: described["islands"][name]


def _phase_difference(generated: Descriptors, real: Descriptors) -> float:
    return 100 * abs(generated["phase_fraction"] - real["phase_fraction"])


def _orientation_difference(generated: Descriptors, real: Descriptors) -> float:
    return compute_axial_wasserstein(generated["islands"]["orientation"], real["islands"]["orientation"])


_UNITS = {"area": "px²", "diameter": "px", "aspect_ratio": "1", "circularity": "1"}

_DISTANCES: dict[str, Callable[[Descriptors, Descriptors], float]] = {
    "phase fraction (points)": _phase_difference,
    "S2 (relative L1)": _relative_l1("s2"),
    "lineal path (relative L1)": _relative_l1("lineal_path"),
    "chord length W1 (px)": _wasserstein(lambda described: described["chords"]),
    "mean intercept (relative)": _relative("mean_intercept"),
    "boundary density (relative)": _relative("boundary_density"),
    "islands per area (relative)": _relative("islands_per_megapixel"),
    **{
        f"island {name.replace('_', ' ')} W1 ({_UNITS[name]})": _wasserstein(_of_islands(name))
        for name in ISLAND_PROPERTIES
        if name != "orientation"
    },
    "island orientation W1 (°)": _orientation_difference,
}


def _summarise(described: Descriptors) -> Descriptors:
    """The descriptors with samples replaced by their count and deciles."""
    samples = {"chords": described["chords"], **{name: described["islands"][name] for name in ISLAND_PROPERTIES}}
    kept = {key: value for key, value in described.items() if key not in ("chords", "islands")}
    deciles = np.linspace(0, 100, 11)
    for name, values in samples.items():
        kept[f"{name}_deciles"] = np.percentile(values, deciles) if len(values) else []
        kept[f"{name}_count"] = len(values)
    return kept

"""The microstructure section: descriptors of generated and real masks, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.iou import nanmean_rows
from steelgen.evaluation.microstructure import ISLAND_PROPERTIES, compute_grain_size_number, compute_mean_intercept
from steelgen.evaluation.sets import Evidence, Judgment
from steelgen.evaluation.structure import Resampled, Structure, compute_structure_distances, measure_structure


def judge_microstructure(evidence: Evidence, predicted: dict[str, NDArray[np.uint8]]) -> Judgment:
    """Compares generated with held-out images by `predicted` masks (from `see_masks`) and by given masks, if any.

    Both sides of a comparison come from the same source, so that the segmenter's errors cancel to first order. The
    floor uses training crops in place of the generated images.
    """
    config, names = evidence.config, evidence.info.class_names
    if not names:
        nothing: dict[str, Any] = {"class_names": [], "images": {"distances": {}}}
        return [], nothing, ["microstructure is not measured: the dataset has no masks"]
    pixel_size = evidence.geometry.scale_pixel_size(evidence.info.pixel_size_um)
    parts = {"generated": evidence.generated, "held_out": evidence.held_out, "train": evidence.train}
    sources = {"images": {key: predicted[part.name] for key, part in parts.items()}}
    if evidence.generated.masks is not None:
        sources["masks"] = {key: part.masks for key, part in parts.items() if part.masks is not None}
    figures: list[Figure] = []
    details: dict[str, Any] = {"class_names": names, "pixel_size_um": pixel_size}
    for source, masks in sources.items():
        limited = {key: stack[: config.microstructure.max_images] for key, stack in masks.items()}
        measured = {
            key: [measure_structure(stack == index) for index in range(len(names))] for key, stack in limited.items()
        }
        generated, held_out, train = measured.values()
        distances = _compute_distances(generated, held_out, pixel_size, config.seed, resample=True)
        floors = _compute_distances(train, held_out, pixel_size, config.seed, resample=False)
        details[source] = {
            key: [describe_structure(structure, limited[key].shape[1:], pixel_size) for structure in structures]
            for key, structures in measured.items()
        }
        details[source]["distances"] = described = {}
        for metric, values in distances.items():
            described[metric] = {
                "generated": values[0],
                "interval": [center_interval(column, lowest=0.0) for column in values.T],
                "floor": floors[metric][0],
            }
            averaged = nanmean_rows(values)
            figures.append(
                Figure(
                    section="microstructure",
                    metric=f"{metric} of {source}",
                    compared=f"generated vs {evidence.held_out.name}, mean of classes",
                    value=float(averaged[0]),
                    floor=float(nanmean_rows(floors[metric])[0]),
                    n=(len(limited["generated"]), len(limited["held_out"])),
                    seed=config.seed,
                    better="lower",
                    interval=center_interval(averaged, lowest=0.0),
                )
            )
    return figures, details, []


def _compute_distances(
    first: list[Structure], second: list[Structure], pixel_size_um: float | None, seed: int, resample: bool
) -> dict[str, NDArray[np.float64]]:
    """(B, C) distances by name, or (1, C) of the sets themselves without resampling."""
    # All classes share one set of weights: resamples are of images.
    weights = [
        resample_weights(len(part[0]), seed, stream)[: None if resample else 1]
        for stream, part in enumerate((first, second))
    ]
    per_class = [
        compute_structure_distances(Resampled(a, weights[0]), Resampled(b, weights[1]), pixel_size_um)
        for a, b in zip(first, second, strict=True)
    ]
    return {metric: np.stack([each[metric] for each in per_class], axis=1) for metric in per_class[0]}


def describe_structure(
    structure: Structure, image_shape: tuple[int, ...], pixel_size_um: float | None = None
) -> dict[str, Any]:
    """Numbers and curves of one class in a set of images, for the report and the JSON file.

    Args:
        image_shape: (S, S).
        pixel_size_um: pixel size of the masks, if known.

    Returns:
        Lengths in px, and `mean_intercept_um` and `grain_size_number` if the pixel size is known. Islands and chords
        are summarized by deciles, since all of them would make the file large.
    """
    intercept = compute_mean_intercept(structure.intercepts)
    described: dict[str, Any] = {
        "phase_fraction": float(structure.fraction.mean()),
        "s2": structure.s2.mean(axis=0),
        "lineal_path": structure.lineal_path.mean(axis=0),
        "mean_intercept": intercept,
        "boundary_density": float(structure.boundary_density.mean()),
        "islands_per_megapixel": 1e6 * len(structure.islands["area"]) / (len(structure) * np.prod(image_shape)),
    }
    if pixel_size_um is not None:
        described["mean_intercept_um"] = intercept * pixel_size_um
        described["grain_size_number"] = compute_grain_size_number(intercept, pixel_size_um)
    chords = structure.chords.sum(axis=0)
    samples = {
        "chords": np.repeat(np.arange(len(chords)), chords),
        **{name: structure.islands[name] for name in ISLAND_PROPERTIES},
    }
    for name, values in samples.items():
        described[f"{name}_deciles"] = np.percentile(values, np.linspace(0, 100, 11)) if len(values) else []
        described[f"{name}_count"] = len(values)
    return described

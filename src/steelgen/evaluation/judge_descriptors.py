"""Comparison of generated and real islands by their latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.spatial
from numpy.typing import NDArray

from steelgen.data.cache import Micrographs
from steelgen.data.sheets import build_sheet
from steelgen.errors import InputError
from steelgen.evaluation.fidelity import compute_mmd
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.islands import IslandSet, describe_islands
from steelgen.evaluation.sets import Evidence, ImageSet, Judgment
from steelgen.generators.describing import Describer

_MAX_ISLANDS = 2000
"""Islands compared per set, chosen at random; the kernel matrix grows with the square."""
_SHOWN = 12
_TILE = 64


class _Points(NamedTuple):
    latents: NDArray[np.float64]
    images: NDArray[np.int64]
    """(N,) index of each island's image."""
    num_images: int
    """Number of images, including those without islands."""


def judge_descriptors(
    evidence: Evidence, describer: Describer, seen: dict[str, NDArray[np.uint8]]
) -> tuple[Judgment, NDArray[np.uint8] | None]:
    """Computes MMD² between latents of generated and real islands, and finds the outliers among generated islands.

    The same generator describes all sets. Islands cut by an image's edge are excluded. Islands come from the masks if
    the generated images have masks, otherwise from the segmenter, in all sets.

    Args:
        evidence: the sets.
        describer: from `load_describer`.
        seen: from `see_masks`.

    Returns:
        The judgment, and a sheet of the generated islands farthest from any real one, above their nearest real islands;
        None without islands.

    Raises:
        InputError: if channels differ, the describer's classes are not in the data, or its patches exceed the images.
    """
    path = evidence.config.descriptors
    if describer.geometry.in_channels != evidence.geometry.in_channels and describer.sees_image:
        raise InputError(
            f"descriptors {path}: in_channels {describer.geometry.in_channels} differs from geometry.in_channels "
            f"{evidence.geometry.in_channels}"
        )
    by_masks = evidence.generated.masks is not None or not seen
    sets = [evidence.generated, evidence.held_out, evidence.train, *(evidence.train_halves or ())]
    masks = {part.name: part.masks for part in sets} if by_masks else seen
    described = {
        part.name: _describe(part, masks[part.name], evidence, describer) for part in sets if part.name in masks
    }
    seed = evidence.config.seed
    points = {name: _select_points(islands, seed) for name, islands in described.items()}
    figures, warnings = [], []
    for reference, floor_sets in evidence.comparisons:
        pair = points["generated"], points[reference.name]
        values = _compare(pair[0], pair[1], seed, resample=True)
        floor = None
        # No segmenter predictions exist for the halves of the training split.
        if floor_sets and all(part.name in points for part in floor_sets):
            floor = _compare(points[floor_sets[0].name], points[floor_sets[1].name], seed, resample=False)
        figures.append(
            Figure(
                section="descriptors",
                metric=f"MMD² of island latents ({len(pair[0].latents)}/{len(pair[1].latents)} islands)",
                compared=f"generated vs {reference.name}",
                value=float(values[0]),
                floor=None if floor is None else float(floor[0]),
                n=(pair[0].num_images, pair[1].num_images),
                seed=seed,
                better="lower",
                interval=center_interval(values),
            )
        )
    for name, islands in described.items():
        if len(islands) < 2:
            warnings.append(f"descriptors: the set {name!r} has only {len(islands)} islands not cut by an edge")
    details: dict[str, Any] = {
        "generator": str(path),
        "source": "masks" if by_masks else "segmenter",
        "islands": {name: len(islands) for name, islands in described.items()},
        "farthest": [],
    }
    references = [described[evidence.held_out.name], described[evidence.train.name]]
    found, sheet = _find_farthest(described["generated"], references, evidence.generated)
    details["farthest"] = found
    return (figures, details, warnings), sheet


def _describe(part: ImageSet, masks: NDArray[np.uint8] | None, evidence: Evidence, describer: Describer) -> IslandSet:
    if masks is None:
        masks = np.full(part.images.shape[:3], evidence.info.ignore_index, np.uint8)
    # The segmenter may have seen only the first images.
    count = len(masks)
    micrographs = Micrographs(evidence.info, part.names[:count], list(part.images[:count]), list(masks))
    return describe_islands(micrographs, describer, evidence.geometry.image_size / evidence.geometry.crop_size)


def _select_points(islands: IslandSet, seed: int) -> _Points:
    latents = islands.description.latents.astype(np.float64)
    images = np.array([patch.micrograph for patch in islands.patches], np.int64)
    if len(latents) > _MAX_ISLANDS:
        rows = np.sort(np.random.default_rng(seed).permutation(len(latents))[:_MAX_ISLANDS])
        latents, images = latents[rows], images[rows]
    return _Points(latents, images, len(islands.micrographs))


def _compare(first: _Points, second: _Points, seed: int, resample: bool) -> NDArray[np.float64]:
    """Computes MMD², (B,), of the sets themselves and of resamples of whole images."""
    weights = [
        resample_weights(points.num_images, seed, stream)[: None if resample else 1][:, points.images]
        for stream, points in enumerate((first, second))
    ]
    return compute_mmd(first.latents, second.latents, weights[0], weights[1])


def _find_farthest(
    generated: IslandSet, references: list[IslandSet], part: ImageSet
) -> tuple[list[dict[str, Any]], NDArray[np.uint8] | None]:
    """Finds the generated islands farthest from any real one, in standard deviations of the real latents."""
    owners = [(islands, row) for islands in references for row in range(len(islands))]
    if not owners or not len(generated):
        return [], None
    real = np.concatenate([islands.description.latents for islands in references]).astype(np.float64)
    deviations = np.maximum(real.std(axis=0), 1e-12)
    distances, nearest = scipy.spatial.cKDTree(real / deviations).query(generated.description.latents / deviations)
    rows = np.argsort(-distances, kind="stable")[:_SHOWN]
    found = [
        {
            "image": part.names[generated.patches[row].micrograph],
            "x": generated.patches[row].center[1],
            "y": generated.patches[row].center[0],
            "distance": float(distances[row]),
        }
        for row in rows
    ]
    above = [generated.show(int(row)) for row in rows]
    below = [owners[nearest[row]][0].show(owners[nearest[row]][1]) for row in rows]
    return found, build_sheet([above, below], tile=_TILE)

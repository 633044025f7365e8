"""The fingerprint of a dataset folder: what the rules of a plan need to know about its micrographs and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.duplicates import find_duplicates, shrink_image
from steelgen.data.folder import DatasetInfo, Pair, list_pairs, list_splits, load_dataset_info, load_metadata, load_pair
from steelgen.data.images import load_image, load_image_size, to_channels
from steelgen.data.islands import measure_islands
from steelgen.data.pool import map_on_cores
from steelgen.errors import InputError
from steelgen.evaluation.microstructure import MIN_ISLAND_AREA

MIN_EDGE = 32
"""Shortest edge, in px, of micrographs that can be planned for."""
MAX_MEASURED = 100
"""Micrographs of a split that are opened, spread evenly over the sorted names."""
DETAIL_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Factors by which micrographs are shrunk to measure the contrast that is left."""
_GRADIENT_SIGMA = 1.5
"""px; smooths pixel noise before orientations are measured."""
_MIN_COLOR = 4.0
"""Mean difference between the channels, in gray levels, from which on a micrograph is in color."""
_MAX_WIDTHS = 20_000
"""Widths of a class that are kept per micrograph."""
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class ClassFingerprint:
    """One class in the measured training micrographs, in px of the micrographs."""

    name: str
    share: float
    """Area share of the pixels that have a class."""
    islands: int
    """Islands of at least 9 px."""
    diameter_quartiles: list[float] | None
    """Quartiles of the islands' equivalent diameters; None without islands."""
    typical_diameter: float | None
    """Median of the equivalent diameters weighted by area, so that specks do not decide."""
    width: float | None
    """Median width along the medial axis, weighted by the width itself, so that specks do not decide."""
    spacing: float | None
    """Median distance between the centers of nearest islands; None with fewer than two islands in each micrograph."""


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset folder contains."""

    name: str
    micrographs: dict[str, int]
    """Labeled ones, or all of a set without masks: number by split."""
    unlabeled: int
    """Micrographs that a segmenter labels before generators are trained."""
    measured: int
    """Training micrographs that were opened."""
    smallest_edge: int
    """Shortest edge of the training micrographs, unlabeled ones included, in px."""
    sizes: dict[str, int]
    """Number of these by size, "width x height"."""
    colored: bool
    """Most micrographs have channels that differ."""
    classes: tuple[ClassFingerprint, ...]
    """By index; empty for images without masks."""
    gray_mean: tuple[float, float]
    """Mean gray level, 0-255: mean and standard deviation over micrographs."""
    contrast: tuple[float, float]
    """Standard deviation of the gray levels within a micrograph: mean and standard deviation over micrographs."""
    detail: dict[float, float]
    """Share of that contrast left after shrinking by each of `DETAIL_FACTORS`, mean over micrographs."""
    orientation: float
    """Strength of a direction common to all micrographs: 0 none, 1 all gradients parallel."""
    direction: float
    """That direction of the structures in degrees, counterclockwise from the horizontal, [0, 180)."""
    agreement: float
    """How far the directions of the micrographs agree, whatever their strengths: 0 not at all, 1 fully."""
    parents: int
    """Micrographs that the measured ones were cut from, by metadata.jsonl; only these have independent directions."""
    leaks: int
    """Pairs of look-alikes in two splits."""
    look_alikes: int
    """Pairs of look-alikes within the training split."""
    instances: bool
    """Each micrograph has an instance map."""
    pixel_size_um: float | None

    @property
    def count(self) -> int:
        """Training micrographs, unlabeled ones included."""
        return self.micrographs["train"] + self.unlabeled

    @property
    def matrix(self) -> int | None:
        """Index of the class with the largest share; None without masks."""
        return int(np.argmax([each.share for each in self.classes])) if self.classes else None

    @property
    def features(self) -> list[ClassFingerprint]:
        """The classes that occur, except the matrix."""
        return [each for index, each in enumerate(self.classes) if each.share > 0 and index != self.matrix]


class Orientation(NamedTuple):
    """A common direction of several micrographs; see `Fingerprint`."""

    strength: float
    direction: float
    agreement: float


class _Contents(NamedTuple):
    """Measurements of one micrograph."""

    colored: bool
    mean: float
    contrast: float
    detail: list[float]
    gradient: complex
    counts: NDArray[np.int64]
    diameters: list[NDArray[np.float64]]
    widths: list[NDArray[np.float64]]
    spacings: list[NDArray[np.float64]]
    shrunken: NDArray[np.float32]


def compute_fingerprint(
    root: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
    unlabeled: Sequence[Path] = (),
) -> Fingerprint:
    """Measures a dataset folder.

    Args:
        root: dataset folder with a training split.
        report: progress callback, called with (done, total).
        unlabeled: images that become training micrographs once they are labeled; their sizes are measured, and whether
            they look like labeled ones.

    Raises:
        InputError: if `root` is not a dataset folder, has no training split, fewer than 2 training micrographs with
            those of `unlabeled`, an invalid pair, or a training micrograph is smaller than 32 px.
    """
    info = load_dataset_info(root)
    splits = list_splits(root)
    if "train" not in splits:
        raise InputError(
            f"{root}: has no train split (present: {', '.join(splits) or 'none'}); `steelgen data split {root} FOLDER` "
            "creates all splits"
        )
    pairs = {split: list_pairs(root, split) for split in splits}
    training = pairs["train"]
    if len(training) + len(unlabeled) < 2:
        raise InputError(
            f"{root}: 1 micrograph in train; a plan needs at least 2. `steelgen data tile` cuts a large micrograph "
            "into several"
        )
    paths = [*(pair.image for pair in training), *unlabeled]
    shapes = [load_image_size(path) for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if min(shape) < MIN_EDGE:
            raise InputError(f"{path}: {shape[1]}x{shape[0]} px; a plan needs edges of at least {MIN_EDGE} px")
    chosen = {split: _spread(each, MAX_MEASURED) for split, each in pairs.items()}
    tasks = [(pair, split == "train") for split, each in chosen.items() for pair in each]
    contents = []
    for found in map_on_cores(partial(_measure, info), tasks):
        contents.append(found)
        report(len(contents), len(tasks))
    names = [split for split, each in chosen.items() for _ in each]
    shrunken = [each.shrunken for each in contents]
    trained = [each for each, split in zip(contents, names, strict=True) if split == "train"]
    further = list(map_on_cores(_shrink, _spread(unlabeled, MAX_MEASURED)))
    leaks = find_duplicates([*shrunken, *further], [*names, *["train"] * len(further)])
    seen = [*(each.shrunken for each in trained), *further]
    alike = find_duplicates(seen, [str(number) for number in range(len(seen))])
    rows = load_metadata(root)
    moments: dict[str, list[complex]] = {}
    for pair, each in zip(chosen["train"], trained, strict=True):
        row = rows.get(pair.image.relative_to(root).as_posix(), {})
        moments.setdefault(str(row.get("parent") or pair.stem), []).append(each.gradient)
    orientation = pool_orientation([complex(np.mean(each)) for each in moments.values()])
    sizes: dict[str, int] = {}
    for height, width in shapes:
        sizes[f"{width} x {height}"] = sizes.get(f"{width} x {height}", 0) + 1
    return Fingerprint(
        name=info.name,
        micrographs={split: len(each) for split, each in pairs.items()},
        unlabeled=len(unlabeled),
        measured=len(trained),
        smallest_edge=min(map(min, shapes)),
        sizes=sizes,
        colored=float(np.mean([each.colored for each in trained])) > 0.5,
        classes=_summarize_classes(info, trained),
        gray_mean=_mean_and_spread([each.mean for each in trained]),
        contrast=_mean_and_spread([each.contrast for each in trained]),
        detail=dict(zip(DETAIL_FACTORS, np.mean([each.detail for each in trained], axis=0).tolist(), strict=True)),
        orientation=orientation.strength,
        direction=orientation.direction,
        agreement=orientation.agreement,
        parents=len(moments),
        leaks=len(leaks),
        look_alikes=len(alike),
        instances=all(pair.instances is not None and pair.instances.is_file() for pair in training),
        pixel_size_um=info.pixel_size_um,
    )


def compute_gradient_moment(gray: NDArray) -> complex:
    """Computes the doubled-angle moment of the gradients of an (H, W) image, Σ (gx + i·gy)² / Σ |g|².

    Its absolute value is the coherence of the structure tensor of the whole image (Bigün & Granlund 1987): 0 if all
    directions occur alike, 1 if all gradients are parallel; half its argument is their direction, y upward.
    """
    from scipy.ndimage import gaussian_filter

    values = np.asarray(gray, np.float64)
    x = gaussian_filter(values, _GRADIENT_SIGMA, order=(0, 1))
    y = -gaussian_filter(values, _GRADIENT_SIGMA, order=(1, 0))
    total = float((x**2 + y**2).sum())
    return complex((x**2 - y**2).sum() / total, (2 * x * y).sum() / total) if total > 0 else 0j


def pool_orientation(moments: Sequence[complex]) -> Orientation:
    """Averages the gradient moments of several micrographs; directions that differ between them cancel."""
    mean = complex(np.mean(moments))
    typical = float(np.sqrt(np.mean(np.abs(moments) ** 2)))
    # Structures run perpendicular to their gradients.
    direction = float(np.degrees(np.angle(mean)) / 2 + 90) % 180
    return Orientation(abs(mean), direction, abs(mean) / typical if typical else 0.0)


def compute_widths(phase: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Computes the width, in px, at each pixel of the medial axis of an (H, W) phase.

    It is twice the distance to the nearest pixel outside, less 1: exact for films of an odd number of pixels. The
    image's edge is no boundary; a phase that fills the image has no width.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.morphology import skeletonize

    if phase.all():
        return np.zeros(0)
    return 2 * distance_transform_edt(phase)[skeletonize(phase)] - 1


def compute_detail(gray: NDArray[np.uint8]) -> list[float]:
    """Computes the share of an (H, W) image's contrast that is left after shrinking by each of `DETAIL_FACTORS`."""
    whole = float(gray.std())
    if whole == 0:
        return [1.0] * len(DETAIL_FACTORS)
    image = Image.fromarray(gray)
    edges = [(max(1, round(image.width / factor)), max(1, round(image.height / factor))) for factor in DETAIL_FACTORS]
    return [float(np.asarray(image.resize(edge, Image.Resampling.BOX), np.float64).std()) / whole for edge in edges]


def _measure(info: DatasetInfo, task: tuple[Pair, bool]) -> _Contents:
    pair, training = task
    image, mask = load_pair(pair, info)
    gray = to_channels(image, 1)
    counts = np.bincount(mask.ravel(), minlength=256)[: info.num_classes]
    diameters, widths, spacings = [], [], []
    for index in range(info.num_classes if training else 0):
        phase = mask == index
        islands = measure_islands(phase)
        kept = islands.area >= MIN_ISLAND_AREA
        diameters.append(np.sqrt(4 * islands.area[kept] / np.pi))
        spacings.append(_find_spacings(islands.centers[kept]))
        along = compute_widths(phase)
        widths.append(along[:: max(1, len(along) // _MAX_WIDTHS)])
    return _Contents(
        colored=image.ndim == 3 and float(np.ptp(image, axis=2).mean()) > _MIN_COLOR,
        mean=float(gray.mean()),
        contrast=float(gray.std()),
        detail=compute_detail(gray),
        gradient=compute_gradient_moment(gray),
        counts=counts,
        diameters=diameters,
        widths=widths,
        spacings=spacings,
        shrunken=shrink_image(image),
    )


def _summarize_classes(info: DatasetInfo, contents: Sequence[_Contents]) -> tuple[ClassFingerprint, ...]:
    counts = np.sum([each.counts for each in contents], axis=0)
    found = []
    for index, name in enumerate(info.class_names):
        diameters = np.concatenate([each.diameters[index] for each in contents])
        widths = np.concatenate([each.widths[index] for each in contents])
        spacings = np.concatenate([each.spacings[index] for each in contents])
        quartiles = np.percentile(diameters, (25, 50, 75)).tolist() if len(diameters) else None
        found.append(
            ClassFingerprint(
                name=name,
                share=float(counts[index] / max(counts.sum(), 1)),
                islands=len(diameters),
                diameter_quartiles=quartiles,
                typical_diameter=compute_weighted_median(diameters, diameters**2) if len(diameters) else None,
                width=compute_weighted_median(widths, widths) if len(widths) else None,
                spacing=float(np.median(spacings)) if len(spacings) else None,
            )
        )
    return tuple(found)


def compute_weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Computes the smallest value at which half of the weight is reached."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _find_spacings(centers: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial import cKDTree

    if len(centers) < 2:
        return np.zeros(0)
    return cKDTree(centers).query(centers, k=2)[0][:, 1]


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def _shrink(path: Path) -> NDArray[np.float32]:
    return shrink_image(load_image(path))


def _spread(values: Sequence[_Value], most: int) -> Sequence[_Value]:
    """Selects at most `most` values, spread evenly."""
    if len(values) <= most:
        return values
    return [values[index] for index in np.linspace(0, len(values) - 1, most).round().astype(int)]

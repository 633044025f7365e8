"""Sides of the translation benchmark, the simple filters beside, and how images are judged.

The made world: the source are overlapping discs of 4 px with noise, the target the same process with another contrast
and scan lines; 512 images of 32 px each for training, 128 for scores. shares: the target has a disc fraction of 0.40,
the source of 0.25. defects: the source has no discs, the target of 0.10. uhcs: procedural layouts rendered by `steelgen
data render`, and crops of data/uhcs without their masks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from steelgen.config.segmenter import SegmenterSection
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info, save_dataset_info, save_mask
from steelgen.data.images import save_image
from steelgen.data.placement import CropGeometry
from steelgen.data.render import RenderOptions, measure_levels, render_dataset
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_gray_kl, compute_kid
from steelgen.evaluation.iou import compute_confusion, compute_iou
from steelgen.evaluation.prediction import predict_masks
from steelgen.evaluation.segmentation import train_segmenter
from steelgen.files import new_folder, save_json
from steelgen.sampling.layouts import LayoutSize, load_layouts

UHCS = Path(__file__).parents[1] / "data" / "uhcs"
EDGE, RADIUS, PERIOD = 32, 4, 4
COUNTS = {"train": 512, "val": 128}
SEGMENTER = SegmenterSection(architecture="unet", steps=150, batch_size=8)
Images = NDArray[np.uint8]


def draw_discs(count: int, fraction: float, rng: np.random.Generator) -> Images:
    """Draws overlapping discs at random places (a Boolean model) of an expected area fraction, (count, EDGE, EDGE)."""
    density = -np.log(1 - fraction) / (np.pi * RADIUS**2)
    rows, columns = np.mgrid[:EDGE, :EDGE] + 0.5
    masks = np.zeros((count, EDGE, EDGE), np.uint8)
    for mask in masks:
        centers = rng.uniform(-RADIUS, EDGE + RADIUS, (rng.poisson(density * (EDGE + 2 * RADIUS) ** 2), 2))
        for row, column in centers:
            mask |= ((rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2).astype(np.uint8)
    return masks


def draw_source(masks: Images, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws source images, (N, EDGE, EDGE) from 0 to 1."""
    return (0.35 + 0.3 * gaussian_filter(masks.astype(float), (0, 0.7, 0.7)) + rng.normal(0, 0.08, masks.shape)).clip(
        0, 1
    )


def draw_target(masks: Images, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws target images: another contrast, and scan lines of random phase."""
    phases = rng.uniform(0, 2 * np.pi, (len(masks), 1, 1))
    lines = 0.04 * np.sin(2 * np.pi * np.arange(EDGE)[None, :, None] / PERIOD + phases)
    return (draw_source(masks, rng) ** 1.3 + lines).clip(0, 1)


def write_world(folder: Path, data: str) -> None:
    """Writes the dataset folders source/ and target/; the target's masks are only for the segmenters and scores."""
    rng = np.random.default_rng(0)
    fractions = {"world": (0.25, 0.25), "shares": (0.25, 0.40), "defects": (0.0, 0.10)}[data]
    sides: tuple[tuple[str, Callable], ...] = (("source", draw_source), ("target", draw_target))
    for (name, draw), fraction in zip(sides, fractions, strict=True):
        with new_folder(folder / name) as working:
            info = DatasetInfo(name=name, class_names=["matrix", "disc"])
            for split, count in COUNTS.items():
                masks = draw_discs(count, fraction, rng)
                for number, (mask, image) in enumerate(zip(masks, draw(masks, rng), strict=True)):
                    save_image(working / f"{split}/images/{number:03}.png", to_bytes(image))
                    save_mask(working / f"{split}/masks/{number:03}.png", mask, info.palette)
            save_dataset_info(working, info)


def to_bytes(image: NDArray[np.float64]) -> Images:
    """Converts gray levels from 0 to 1 to uint8."""
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def find_sides(data: str, runs: Path) -> tuple[Path, Path]:
    """Returns the dataset folders of the source and the target, and writes those that are made."""
    folder = runs / "data" / data
    if data != "uhcs":
        if not (folder / "target").is_dir():
            write_world(folder, data)
        return folder / "source", folder / "target"
    if not (folder / "source").is_dir():
        layouts = folder / "layouts.json"
        save_json(layouts, {"mask_source": {"kind": "procedural", "dataset": str(UHCS)}})
        info = load_dataset_info(UHCS)
        size = LayoutSize(2 * EDGE, 2 * EDGE)
        _, count, masks = load_layouts(layouts, info, COUNTS["train"] + COUNTS["val"], size, seed=0)
        options = RenderOptions(measure_levels(load_micrographs(UHCS, "train")))
        render_dataset(masks, count, info, folder / "source", options)
    return folder / "source", UHCS


def match_histogram(images: Images, reference: Images) -> Images:
    """Maps gray levels by rank, so that their distribution is exactly that of the reference; ties are broken at random,
    since a table of 256 levels would leave some of them empty."""
    ranks = np.argsort(images.ravel() + np.random.default_rng(0).random(images.size))
    wanted = np.sort(reference.ravel())[np.arange(images.size) * reference.size // images.size]
    matched = np.empty(images.size, np.uint8)
    matched[ranks] = wanted
    return matched.reshape(images.shape)


def match_spectrum(images: Images, reference: Images) -> Images:
    """Multiplies spectra so that their mean power at each frequency is that of the reference, and shifts the mean."""
    power = [np.mean(np.abs(np.fft.fft2(part - part.mean())) ** 2, axis=0) for part in (images, reference)]
    matched = np.fft.ifft2(np.fft.fft2(images - images.mean()) * np.sqrt(power[1] / np.maximum(power[0], 1e-9))).real
    return to_bytes((matched + reference.mean()) / 255)


def add_noise(images: Images, reference: Images) -> Images:
    """Adds Gaussian noise with the difference in variance, or a tenth of the gray range's, and shifts the mean."""
    missing = max(float(reference.var()) - float(images.var()), 8.0**2)
    noise = np.random.default_rng(0).normal(0, np.sqrt(missing), images.shape)
    return to_bytes((images + noise + reference.mean() - images.mean()) / 255)


FILTERS: dict[str, Callable[[Images, Images], Images]] = {
    "source": lambda images, reference: images,
    "histogram matching": match_histogram,
    "spectrum matching": match_spectrum,
    "added noise": add_noise,
}


class Judge:
    """Scores images against held-out target images.

    Args:
        data: one of DATA; the scan lines and the threshold are known only for the made worlds.
        runs: folder of runs.
    """

    def __init__(self, data: str, runs: Path) -> None:
        source, target = find_sides(data, runs)
        self.geometry = CropGeometry(EDGE, 2 * EDGE if data == "uhcs" else EDGE)
        count = COUNTS["val"]
        held_out = "val" if data != "uhcs" else "train"
        self.given, self.masks = cut_crops(load_micrographs(source, held_out), self.geometry, count, seed=1)
        self.real, self.real_masks = cut_crops(load_micrographs(target, "val"), self.geometry, count, seed=1)
        self.seen, _ = cut_crops(load_micrographs(target, "train"), self.geometry, count, seed=2)
        self._is_made = data != "uhcs"
        self._extractor = build_extractor("efficientnet-lite0")
        self._features = compute_features(self.real, self._extractor)
        self._threshold = max(
            np.linspace(40, 200, 81), key=lambda level: self._find_iou(self.real, self.real_masks, level)
        )

    def score(self, images: Images, masks: NDArray[np.uint8] | None = None) -> dict[str, float]:
        """Scores images with the masks of the source, or others."""
        masks = self.masks if masks is None else masks
        counts = [np.bincount(part.ravel(), minlength=256) for part in (self.real, images)]
        found = {
            "kid": compute_kid(self._features, compute_features(images, self._extractor))[0],
            "gray_kl": float(compute_gray_kl(counts[0], counts[1])),
        }
        if self._is_made:
            powers = [
                np.mean(np.abs(np.fft.fft2(part - part.mean((1, 2), keepdims=True))) ** 2, axis=0)
                for part in (images, self.real)
            ]
            line = (EDGE // PERIOD, 0)
            found |= {
                "scan_line_power": float(powers[0][line] / powers[1][line]),
                "spectrum": float(np.abs(np.diff(np.log(np.stack(powers).reshape(2, -1)[:, 1:]), axis=0)).mean()),
            }
        if self._is_made and (masks == 1).any():
            truth = self._find_iou(self.real, self.real_masks, self._threshold)
            area = float((gaussian_filter(images.astype(float), (0, 1, 1)) > self._threshold).mean())
            found |= {
                "iou_share": self._find_iou(images, masks, self._threshold) / truth,
                "area_shift": area - float((masks == 1).mean()),
            }
        return found

    def _find_iou(self, images: Images, masks: NDArray[np.uint8], level: float) -> float:
        disc = gaussian_filter(images.astype(float), (0, 1, 1)) > level
        return float((disc & (masks == 1)).sum() / max(1, (disc | (masks == 1)).sum()))


def fit_segmenter(images: Images, masks: Images, info: DatasetInfo, seed: int) -> nn.Module:
    """Trains the segmenter on pairs of EDGE px."""
    pairs = Micrographs(info, [str(number) for number in range(len(images))], list(images), list(masks))
    return train_segmenter(pairs, CropGeometry(EDGE, EDGE), SEGMENTER, seed)


def score_segmenter(segmenter: nn.Module, images: Images, masks: Images, num_classes: int) -> list[float]:
    """Computes the IoU of each class."""
    return [
        float(value)
        for value in compute_iou(compute_confusion(masks, predict_masks(segmenter, images), num_classes, 255))
    ]

"""Accuracy of steelgen's segmenter on real micrographs (uhcs).

    python benchmarks/segmentation.py folds --minutes 15
    python benchmarks/segmentation.py folds --steps 5000
    python benchmarks/segmentation.py times --seconds 20 60 180
    python benchmarks/segmentation.py scales
    python benchmarks/segmentation.py table

`folds` trains on 20 micrographs and tests on the other 4, whole and at full resolution, with the folds of published
work (cv_fold in metadata.jsonl); nothing is selected on the test micrographs, and the last weights are tested.
`times` compares the small U-Net with random weights and the pretrained one after equal training time, as judges of
images at half the resolution (crops of 128 px at 64 px). `scales` compares the scales at which a judge sees such
images. Times are CPU seconds of one core, which a busy machine barely affects; on a GPU, `folds` needs --steps. Each
network is stored when done; a stopped run resumes with the next one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from numpy.typing import NDArray

from steelgen.config.base import config_to_json
from steelgen.config.segmenter import SegmenterSection
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.devices import pick_device
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_confusion, compute_iou, compute_mean_iou
from steelgen.evaluation.prediction import averaging_of, predict_masks
from steelgen.evaluation.segmentation import train_segmenter
from steelgen.evaluation.windows import label_by_windows
from steelgen.files import load_json, save_json

ROOT = Path(__file__).parents[1]
DATASET = ROOT / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
NATIVE = CropGeometry(256, 256)
HALF = CropGeometry(64, 128)
FOLDS = {"train_size": 160, "batch_size": 6, "enlargement": 1.5, "flips": True, "scales": [0.85, 1.0, 1.2]}
"""Settings of `folds` that differ from the defaults."""
JUDGES: dict[str, dict[str, Any]] = {
    "small": {"architecture": "unet", "learning_rate": 3e-3, "enlargement": 1.0},
    "pretrained": {},
}
"""Settings compared by `times`."""
SCALES: dict[str, dict[str, Any]] = {"not enlarged": {"enlargement": 1.0}}
"""Settings that `scales` compares with the pretrained judge of `times`, which upsamples twice. `scales` also tests a
judge trained at the micrographs' resolution on upsampled images."""
NO_END = 10**8


def load_folds() -> tuple[Micrographs, NDArray[np.int64]]:
    """Loads all 24 micrographs and the test fold of each."""
    rows = [json.loads(line) for line in (DATASET / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    folds = {row["parent"]: row["cv_fold"] for row in rows}
    splits = [load_micrographs(DATASET, split) for split in ("train", "val", "test")]
    stems = [stem for split in splits for stem in split.stems]
    images = [image for split in splits for image in split.images]
    masks = [mask for split in splits for mask in split.masks]
    return Micrographs(splits[0].info, stems, images, masks), np.array([folds[stem] for stem in stems])


def run_fold(fold: int, budget: dict[str, float], seed: int) -> dict[str, Any]:
    """Trains and tests one fold, for a number of steps or minutes."""
    micrographs, folds = load_folds()
    settings = SegmenterSection.model_validate({"steps": NO_END, **budget, **FOLDS})
    train, test = (micrographs.select(np.flatnonzero(chosen)) for chosen in (folds != fold, folds == fold))
    start, steps = time.process_time(), 0

    def count(done: int, total: int) -> None:
        nonlocal steps
        steps = done

    network = train_segmenter(
        train, NATIVE, settings, seed, str(pick_device()), report_progress=count, clock=time.process_time
    )
    trained = time.process_time()
    matrices = []
    for image, mask in zip(test.images, test.masks, strict=True):
        predicted, _ = label_by_windows(
            network, image, max(mask.shape), max(mask.shape), test.info.num_classes, averaging_of(settings)
        )
        matrices.append(compute_confusion(mask, predicted, test.info.num_classes, test.info.ignore_index))
    return {
        "fold": fold,
        "seed": seed,
        "settings": config_to_json(settings),
        "steps": steps,
        "training_seconds": trained - start,
        "test_seconds": time.process_time() - trained,
        "micrographs": test.stems,
        **describe(np.stack(matrices)),
    }


def run_judge(settings: dict[str, Any], seconds: float, seed: int, geometry: CropGeometry = HALF) -> dict[str, Any]:
    """Trains a judge on the training split and tests it on crops of the test split at half the resolution."""
    section = SegmenterSection.model_validate({"steps": NO_END, "max_minutes": seconds / 60, **settings})
    network = train_segmenter(load_micrographs(DATASET, "train"), geometry, section, seed, clock=time.process_time)
    test = load_micrographs(DATASET, "test")
    images, masks = cut_crops(test, HALF, 256, seed=1)
    if geometry is not HALF:
        factor = HALF.crop_size // HALF.image_size
        network = _ShownEnlarged(network, factor)
    predicted = predict_masks(network, images, averaging_of(section))
    matrices = [compute_confusion(m, p, test.info.num_classes) for m, p in zip(masks, predicted, strict=True)]
    return {"seconds": seconds, "seed": seed, "settings": config_to_json(section), **describe(np.stack(matrices))}


class _ShownEnlarged(torch.nn.Module):
    """Runs a judge of the micrographs' resolution on upsampled images."""

    def __init__(self, network: torch.nn.Module, factor: int) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        enlarged = torch.nn.functional.interpolate(images, scale_factor=self.factor, mode="bicubic").clamp(-1, 1)
        return torch.nn.functional.avg_pool2d(self.network(enlarged), self.factor)


def describe(matrices: NDArray[np.int64]) -> dict[str, Any]:
    """Returns mIoU and class IoU of the summed confusion matrix, and the matrices."""
    total = matrices.sum(axis=0)
    return {
        "mean_iou": float(compute_mean_iou(total)),
        "class_iou": to_json(compute_iou(total)),
        "confusion": to_json(matrices),
    }


def keep(path: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Computes a result unless it is stored, and prints it."""
    if not path.is_file():
        save_json(path, {"name": path.stem, **make()})
    result = load_json(path)
    print(path.stem, f"{result['mean_iou']:.3f}", [f"{iou:.3f}" for iou in result["class_iou"]], flush=True)


def gather(runs: Path) -> dict[str, Any]:
    """Collects all stored results."""
    parts = {
        part: [load_json(path) for path in sorted((runs / part).glob("*.json"))]
        for part in ("folds", "times", "scales")
    }
    return {"class_names": load_micrographs(DATASET, "test").info.class_names, **parts}


def main() -> None:
    """Runs one part, or collects all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("folds", "times", "scales", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/segmentation"))
    parser.add_argument("--minutes", type=float, default=15.0, help="training time per fold, on one core")
    parser.add_argument("--steps", type=int, help="training steps per fold, instead of a time")
    parser.add_argument("--only", type=int, nargs="+", default=range(6), help="folds to run")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[20, 60, 180], help="training times per judge, on one core"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = arguments.runs
    for seed in arguments.seeds:
        if arguments.part == "folds":
            for fold in arguments.only:
                budget = {"steps": arguments.steps} if arguments.steps else {"max_minutes": arguments.minutes}
                length = f"{arguments.steps}steps" if arguments.steps else f"{arguments.minutes:g}min"
                path = runs / "folds" / f"fold{fold}-seed{seed}-{length}.json"
                keep(path, partial(run_fold, fold, budget, seed))
        for seconds in arguments.seconds if arguments.part in ("times", "scales") else ():
            for name, settings in (JUDGES if arguments.part == "times" else SCALES).items():
                path = runs / arguments.part / f"{name}-seed{seed}-{seconds:g}s.json"
                keep(path, partial(run_judge, settings, seconds, seed))
            if arguments.part == "scales":
                path = runs / "scales" / f"trained at the micrographs' resolution-seed{seed}-{seconds:g}s.json"
                keep(path, partial(run_judge, {"enlargement": 1.0}, seconds, seed, CropGeometry(128, 128)))
    if arguments.part == "table":
        save_results(RESULTS / "segmentation.json", gather(runs))


if __name__ == "__main__":
    main()

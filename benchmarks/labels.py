"""Labels from few labeled crops of uhcs: heads on features against a U-Net from random weights.

    python benchmarks/labels.py run
    python benchmarks/labels.py memory
    python benchmarks/labels.py table

A segmenter is trained on 5, 10 or 20 labeled crops of the 16 training micrographs, 128 px at 64 px, and tested on 64
crops of the 4 test micrographs; nothing is selected on these. All systems of a seed have the same crops. `base` is the
bundled base model with the null mask: its training had no micrograph and no mask of data/uhcs, but 36 others of the
same steel without masks, and masks of other materials. `untrained` is the same network with random weights,
`multiscale` are gray levels, edges, and textures at several scales, `scratch` is a small U-Net. None has seen a mask of
uhcs beside those of its crops. `memory` trains heads on 100 micrographs of 256 px. Each result is stored when done, and
a stopped `run` resumes with the next one; `table` gathers them.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from numpy.typing import NDArray

from steelgen.config.base import parse_config
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.segment import SegmentConfig
from steelgen.config.segmenter import SegmenterSection
from steelgen.data.crops import Micrographs, cut_crops, image_to_tensor, load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.iou import compute_confusion, compute_iou, compute_mean_iou
from steelgen.evaluation.pixel_training import train_pixel_heads
from steelgen.evaluation.prediction import measures_agreement, predict_maps
from steelgen.evaluation.segmentation import train_segmenter
from steelgen.files import load_json, save_json
from steelgen.generators.families import build_generator
from steelgen.planning.rules import SMALL_NETWORK

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/benchmarks/labels")
GEOMETRY = CropGeometry(64, 128)
CROPS = (5, 10, 20)
SYSTEMS = ("base", "untrained", "multiscale", "scratch")
HEADS = {"ensemble_size": 5, "crops": 192, "pixels_per_crop": 512, "steps": 400}
LEVELS = {"brightness": 0.04, "contrast": 0.12, "gamma": 0.13, "noise": 0.017, "blur": 0.4}
"""A third of the variation that networks are trained with."""
DIFFUSION = {"timesteps": [50], "blocks": [4, 5, 6, 7, 8]}
"""Like `HEADS` and `LEVELS` chosen on the validation micrographs, with 10 labeled crops of one seed."""
SCRATCH: dict[str, Any] = {"architecture": "unet", "learning_rate": 3e-3, "enlargement": 1.0}
TEST_CROPS = 64
DROPPED = 0.1
"""Share of the test crops dropped by confidence."""
Array = NDArray[Any]


def cut_labeled(count: int, seed: int) -> Micrographs:
    """Cuts the labeled crops; fewer are the first of more."""
    train = load_micrographs(DATASET, "train")
    images, masks = cut_crops(train, CropGeometry(GEOMETRY.crop_size, GEOMETRY.crop_size), max(CROPS), seed)
    stems = [f"crop{index}" for index in range(count)]
    return Micrographs(train.info, stems, list(images[:count]), list(masks[:count]))


def find_untrained() -> Path:
    """Writes a generator with the network of the bundled models and random weights, once."""
    folder = RUNS / "untrained"
    if not folder.is_dir():
        torch.manual_seed(0)
        section = parse_config({"unet": dict(SMALL_NETWORK)}, SemanticDiffusionSection)
        build_generator(section, load_micrographs(DATASET, "train"), GEOMETRY).save(folder)
    return folder


def build_config(system: str, seed: int) -> SegmentConfig:
    """Builds the config of heads."""
    features: dict[str, Any] = {"kind": "multiscale"}
    if system != "multiscale":
        generator = "bundled:base" if system == "base" else str(find_untrained())
        features = {"generator": generator, **DIFFUSION}
    values = {"dataset": str(DATASET), "output_dir": "unused", "image_size": 64, "crop_size": 128, "seed": seed}
    segmenter = {"augmentation": LEVELS}
    return parse_config({**values, "segmenter": segmenter, "features": {**HEADS, **features}}, SegmentConfig)


def run_system(system: str, count: int, seed: int) -> dict[str, Any]:
    """Trains a segmenter on few crops and tests it."""
    labeled, start = cut_labeled(count, seed), time.process_time()
    if system == "scratch":
        network = train_segmenter(labeled, GEOMETRY, SegmenterSection.model_validate(SCRATCH), seed)
    else:
        network, _ = train_pixel_heads(labeled, None, GEOMETRY, build_config(system, seed))
    trained = time.process_time()
    images, masks = cut_crops(load_micrographs(DATASET, "test"), GEOMETRY, TEST_CROPS, seed=1)
    num_classes = labeled.info.num_classes
    matrices, confidence = [], []
    for image, mask in zip(images, masks, strict=True):
        with torch.inference_mode():
            maps = predict_maps(network, image_to_tensor(image)[None])[0]
        best, predicted = maps[:num_classes].max(dim=0)
        matrices.append(compute_confusion(mask, predicted.to(torch.uint8).numpy(), num_classes))
        confidence.append(float((maps[-1] if measures_agreement(network) else best).mean()))
    return {
        "system": system,
        "crops": count,
        "seed": seed,
        "training_seconds": trained - start,
        "test_seconds": time.process_time() - trained,
        "mean_iou": float(compute_mean_iou(np.sum(matrices, axis=0))),
        "class_iou": to_json(compute_iou(np.sum(matrices, axis=0))),
        "confidence": confidence,
        "confusion": to_json(np.stack(matrices)),
    }


def measure_memory() -> dict[str, Any]:
    """Trains heads on one crop each of 100 images of 256 px, and labels one; returns the peak memory in GiB."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (256, 256), dtype=np.uint8) for _ in range(100)]
    masks = [rng.integers(0, 2, (256, 256), dtype=np.uint8) for _ in images]
    info = load_micrographs(DATASET, "train").info
    noise = Micrographs(info, [str(index) for index in range(100)], images, masks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = {"dataset": str(DATASET), "output_dir": "unused", "image_size": 256, "crop_size": 512}
    features = {"generator": "bundled:base", "crops": 100, "pixels_per_crop": 10**6, "steps": 5, "timesteps": [50]}
    config = parse_config({**values, "segmenter": {"train_size": 256}, "features": features}, SegmentConfig)
    # Crops of 256 px of micrographs of 256 px: the scale does not matter here.
    network, _ = train_pixel_heads(noise, None, CropGeometry(256, 512), config)
    with torch.inference_mode():
        predict_maps(network, image_to_tensor(images[0])[None])
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before_gib": before}


def gather() -> dict[str, Any]:
    """Collects the seeds that all systems have finished: means, differences, and what dropping unsure crops gives.

    Intervals are over the test crops, resampled together for all systems, and the seeds.
    """
    stored = [load_json(path) for path in sorted(RUNS.glob("*-*-seed*.json"))]
    found = {(run["system"], run["crops"], run["seed"]): run for run in stored}
    weights = resample_weights(TEST_CROPS, 0)
    rows, differences = [], []
    for count in CROPS:
        seeds = [seed for seed in range(100) if all((system, count, seed) in found for system in SYSTEMS)]
        if not seeds:
            continue
        by_seed = resample_weights(len(seeds), 0, stream=1) / len(seeds)
        iou: dict[str, Array] = {}
        for system in SYSTEMS:
            runs = [found[system, count, seed] for seed in seeds]
            matrices = np.array([run["confusion"] for run in runs], np.float64)
            resampled = compute_mean_iou(np.einsum("bn,snij->bsij", weights, matrices))
            iou[system] = (resampled * by_seed).sum(axis=1)
            rows.append(
                {
                    "system": system,
                    "crops": count,
                    "mean_iou": float(iou[system][0]),
                    "interval": to_json(center_interval(iou[system], 0, 1)),
                    "by_seed": [run["mean_iou"] for run in runs],
                    "kept_mean_iou": float(np.mean([drop_unsure(run) for run in runs])),
                    "training_seconds": float(np.median([run["training_seconds"] for run in runs])),
                }
            )
        for rival in SYSTEMS[1:]:
            difference = iou["base"] - iou[rival]
            interval = to_json(center_interval(difference))
            differences.append(
                {"rival": rival, "crops": count, "difference": float(difference[0]), "interval": interval}
            )
    gains = [row["kept_mean_iou"] - row["mean_iou"] for row in rows if row["system"] != "scratch"]
    return {
        "test_crops": TEST_CROPS,
        "dropped": DROPPED,
        "rows": rows,
        "differences": differences,
        "raised_by_dropping": [sum(gain > 0 for gain in gains), len(gains)],
        "memory": load_json(RUNS / "memory.json") if (RUNS / "memory.json").is_file() else None,
    }


def drop_unsure(run: dict[str, Any]) -> float:
    """Computes the mIoU without the tenth of the test crops with the lowest confidence."""
    order = np.argsort(run["confidence"])[round(DROPPED * len(run["confidence"])) :]
    return float(compute_mean_iou(np.array(run["confusion"])[order].sum(axis=0)))


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "memory", "table"))
    parser.add_argument("--systems", choices=SYSTEMS, nargs="+", default=SYSTEMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(3))
    parser.add_argument("--out", type=Path, default=RESULTS / "labels.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "table":
        save_results(arguments.out, gather(), show=False)
    elif arguments.part == "memory":
        save_json(RUNS / "memory.json", measure_memory())
    else:
        for seed, count, system in product(arguments.seeds, CROPS, arguments.systems):
            path = RUNS / f"{system}-{count}-seed{seed}.json"
            if not path.is_file():
                save_json(path, run_system(system, count, seed))
            print(path.stem, f"{load_json(path)['mean_iou']:.3f}", flush=True)


if __name__ == "__main__":
    main()

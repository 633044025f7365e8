"""Labeled images of a material without one label on it: from renderings of layouts to micrographs of uhcs.

    python benchmarks/unlabeled.py run --way labeled --seed 0
    python benchmarks/unlabeled.py table

Source are the renderings of procedural layouts of translation_world.py, target the training micrographs of uhcs without
their masks, 64 px at 32 px. All ways fine-tune `bundled:base`, which has seen none of them, for the same steps:

started: images alone are learned; renderings, noised to a share of the schedule, start the sampling (image to image).
labeled: a segmenter trained on the renderings labels the micrographs, and images are generated for the layouts.
real-labeled: the same with the real labels, the limit of the way.
real-masks: these, for masks of held-out micrographs instead of layouts.

Judged as in translation_world.py: KID to held-out crops; the IoU of a segmenter trained on real pairs with the labels;
that of a segmenter trained on the images, on real crops. `run` can be stopped at any time and resumes with the same
arguments; `table` writes the results.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from fitting import train_to_end
from pair_judge import draw_images
from torch import nn
from translation_world import COUNTS, EDGE, UHCS, Images, Judge, find_sides, fit_segmenter, score_segmenter

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig
from steelgen.data.crops import cut_crops, image_to_tensor, load_micrographs
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.images import save_image
from steelgen.data.placement import resize_image
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.prediction import predict_masks
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Generator, StartImages
from steelgen.generators.families import load_generator

RESULTS = Path(__file__).parent / "results"
WAYS = ("started-0.1", "started-0.2", "started-0.3", "labeled", "real-labeled", "real-masks")
_MULTIPLE = 16
"""Of the edges of images that the segmenter labels."""


def write_images(folder: Path, segmenter: nn.Module | None, info: DatasetInfo) -> float | None:
    """Writes the training micrographs of uhcs as a dataset folder, once: without masks, or with a segmenter's.

    Returns:
        The share of pixels that are labeled as in reality, if it labels and was not done before.
    """
    if folder.is_dir():
        return None
    micrographs, right = load_micrographs(UHCS, "train"), []
    with new_folder(folder) as working:
        for stem, image, truth in zip(micrographs.stems, micrographs.images, micrographs.masks, strict=True):
            if segmenter is not None:
                # The segmenter sees the scale of its training, half that of the micrographs.
                height, width = (edge // (2 * _MULTIPLE) * (2 * _MULTIPLE) for edge in image.shape)
                image = image[:height, :width]
                small = predict_masks(segmenter, resize_image(image, height // 2, width // 2)[None])[0]
                mask = small.repeat(2, axis=0).repeat(2, axis=1)
                right.append((mask == truth[:height, :width]).mean())
                save_mask(working / f"train/masks/{stem}.png", mask, info.palette)
            save_image(working / f"train/images/{stem}.png", image)
        save_dataset_info(working, info if segmenter else DatasetInfo(name="unlabeled", class_names=[]))
    return float(np.mean(right)) if right else None


def fit_generator(dataset: Path, run_dir: Path, seed: int, steps: int) -> Generator:
    """Fine-tunes `bundled:base`, or resumes or loads it."""
    values = {
        "run_dir": str(run_dir),
        "seed": seed,
        "checkpoint": "bundled:base",
        "data": {"dataset": str(dataset), "image_size": EDGE, "crop_size": 2 * EDGE},
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "learning_rate": 1e-3,
            "warmup_steps": min(50, steps),
            "ema_decay": 0.99,
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
    }
    return load_generator(train_to_end(parse_config(values, FinetuneConfig)))


def run(arguments: argparse.Namespace) -> None:
    """Trains, draws and scores one way with one seed."""
    runs, way, seed, steps = arguments.runs, arguments.way, arguments.seed, arguments.steps
    path = runs / "scores" / f"{way}-seed{seed}-{steps}.json"
    if path.is_file():
        return
    source, target = find_sides("uhcs", arguments.renderings)
    judge, count = Judge("uhcs", arguments.renderings), COUNTS["train"]
    rendered, layouts = cut_crops(load_micrographs(source, "train"), judge.geometry, count, seed=3)
    real, real_masks = cut_crops(load_micrographs(target, "train"), judge.geometry, count, seed=3)
    info, kind = load_micrographs(source, "train").info, way.split("-")[0]
    judging = fit_segmenter(real, real_masks, info, seed)
    described: dict[str, Any] = {"way": way, "seed": seed, "steps": steps}
    masks, training_masks = judge.masks, layouts
    begin = time.process_time()
    if kind == "started":
        dataset = runs / "data" / "unlabeled"
        write_images(dataset, None, info)
        run_dir = runs / f"unlabeled-seed{seed}-{steps}"
    elif kind == "labeled":
        dataset = runs / "data" / f"labeled-seed{seed}"
        described["labeled_right"] = write_images(dataset, fit_segmenter(rendered, layouts, info, seed), info)
        run_dir = runs / f"labeled-seed{seed}-{steps}"
    else:
        dataset, run_dir = target, runs / f"real-seed{seed}-{steps}"
    generator = fit_generator(dataset, run_dir, seed, steps)
    described["cpu_seconds"] = time.process_time() - begin
    if way == "real-masks":
        masks, training_masks = judge.real_masks, real_masks

    def draw(masks: Images, given: Images, seed: int) -> Images:
        def take(part: slice) -> dict[str, Any]:
            if kind != "started":
                return {}
            images = torch.stack([image_to_tensor(image) for image in given[part]])
            return {"start": StartImages(images, float(way.split("-")[1]))}

        return draw_images(generator, masks, SolverSection(), seed, take)[0]

    images, training_images = draw(masks, judge.given, seed), draw(training_masks, rendered, seed + 1)
    rows = [list(part[:12]) for part in (judge.given, images, judge.real)]
    save_image(runs / f"{way}-seed{seed}-{steps}.png", build_sheet(rows, 96))
    taught = fit_segmenter(training_images, training_masks, info, seed)
    found = {
        "kid": judge.score(images, masks)["kid"],
        "labels_seen": score_segmenter(judging, images, masks, info.num_classes),
        "iou": score_segmenter(taught, judge.real, judge.real_masks, info.num_classes),
    }
    save_json(path, {**described, "score": found})
    print(path.stem, found, flush=True)


def main() -> None:
    """Runs one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/unlabeled"), help="folder of runs")
    renderings = Path("runs/benchmarks/translation")
    parser.add_argument("--renderings", type=Path, default=renderings, help="--runs of translation.py")
    parser.add_argument("--way", choices=WAYS, default="labeled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "run":
        os.nice(5)
        run(arguments)
    else:
        found = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
        save_results(RESULTS / "unlabeled.json", {"runs": found})


if __name__ == "__main__":
    main()

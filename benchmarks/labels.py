"""Labels from few labeled crops of uhcs: heads on features against a U-Net from random weights.

    python benchmarks/labels.py train
    python benchmarks/labels.py run --system images --crops 5 --seed 0
    python benchmarks/labels.py memory
    python benchmarks/labels.py table

A segmenter is trained on 5, 10 or 20 labeled crops of the training micrographs, 128 px at 64 px, and tested on crops of
the 4 test micrographs. All systems of a seed have the same crops and the same augmentation. `base` is the bundled base
model with the null mask: its training had no micrograph and no mask of data/uhcs, but 36 others of the same steel
without masks, and masks of other materials. `images` is that model after `train`: fine-tuned on the 16 training
micrographs of data/uhcs without masks. `untrained` is the network of `base` with random weights, `multiscale` are
gray levels, edges and textures at several scales. None of them has seen a mask of uhcs beside those of the crops.
`memory` trains heads on 100 micrographs of 256 px. Results are stored when done; `table` gathers them.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results

from steelgen.config.base import parse_config
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import FinetuneConfig
from steelgen.data.crops import Micrographs, cut_crops, image_to_tensor, load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_confusion, compute_iou, compute_mean_iou
from steelgen.evaluation.pixel_training import train_pixel_heads
from steelgen.evaluation.segmentation import measures_agreement, predict_maps, train_segmenter
from steelgen.files import load_json, save_json
from steelgen.generators.families import build_generator
from steelgen.planning.rules import SMALL_NETWORK
from steelgen.training.loop import finetune

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/benchmarks/labels")
GEOMETRY = CropGeometry(64, 128)
CROPS = (5, 10, 20)
SYSTEMS = ("images", "base", "untrained", "multiscale", "scratch")
TEST_CROPS = 64
DROPPED = 0.1
"""Share of the test crops dropped by confidence."""


def train_generator(steps: int) -> None:
    """Fine-tunes the bundled base model on the training micrographs without masks."""
    values = {
        "run_dir": str(RUNS / "images"),
        "checkpoint": "bundled:base",
        "data": {"dataset": str(DATASET), "image_size": 64, "crop_size": 128, "unconditional": True},
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "learning_rate": 3e-4,
            "warmup_steps": 20,
            "ema_decay": 0.97,
            "mixed_precision": "auto",
            "checkpoint_every": 60,
            "keep_checkpoints": 1,
            "trackers": [],
        },
        "preview": {"every": steps, "num_images": 8},
        "validation": {"every": steps, "crops": 64},
        "measurement": {"every": None},
    }
    start = time.process_time()
    finetune(parse_config(values, FinetuneConfig), LinePrinter(), resume=True)
    save_json(RUNS / "images.json", {"steps": steps, "cpu_seconds": time.process_time() - start})


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "run", "memory", "table"))
    parser.add_argument("--steps", type=int, default=240, help="fine-tuning steps of `train`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "train":
        train_generator(arguments.steps)


if __name__ == "__main__":
    main()

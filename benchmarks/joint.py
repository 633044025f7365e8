"""Pairs, masks, and labels of `joint_diffusion` on overlapping discs whose statistics are known.

    python benchmarks/joint.py train        trains on 512 tiles of the disc world
    python benchmarks/joint.py measure      measures pairs, phase fractions, images for masks, and labels

The disc world: discs of radius 4 px at Poisson places cover a quarter of tiles of 32² px; the image is
0.35 + 0.3·blur(mask, 0.7 px) + noise of standard deviation 0.08. A Gaussian field cut at a level, and 16 tiles with
their 8 symmetries in place of a generator, are measured by the same figures; each must fail in one.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import LinePrinter
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.files import save_json
from steelgen.training.loop import train

EDGE, RADIUS, FRACTION = 32, 4, 0.25
TILES = {"train": 512, "val": 128}
RUN = Path("runs/benchmarks/joint")
Array = NDArray[Any]


def sample_discs(count: int, seed: int) -> Array:
    """Samples tiles (N, 32, 32) bool of a Boolean model of discs."""
    rng = np.random.default_rng(seed)
    density, reach = -math.log(1 - FRACTION) / (math.pi * RADIUS**2), EDGE + 2 * RADIUS
    y, x = np.mgrid[:EDGE, :EDGE] + 0.5
    tiles = np.zeros((count, EDGE, EDGE), bool)
    for tile in tiles:
        for row, column in rng.uniform(-RADIUS, EDGE + RADIUS, (rng.poisson(density * reach**2), 2)):
            tile |= (y - row) ** 2 + (x - column) ** 2 <= RADIUS**2
    return tiles


def render(tiles: Array, seed: int) -> Array:
    """Renders the images (N, 32, 32) uint8 of tiles."""
    noise = np.random.default_rng(seed).normal(0, 0.08, tiles.shape)
    smooth = gaussian_filter(tiles.astype(float), (0, 0.7, 0.7))
    return np.rint(255 * (0.35 + 0.3 * smooth + noise).clip(0, 1)).astype(np.uint8)


def write_world(root: Path) -> None:
    """Writes a dataset folder of the disc world."""
    info = DatasetInfo(name="discs", class_names=["matrix", "disc"])
    for seed, (split, count) in enumerate(TILES.items()):
        tiles = sample_discs(count, seed)
        for index, (tile, image) in enumerate(zip(tiles, render(tiles, 100 + seed), strict=True)):
            save_mask(root / split / "masks" / f"{index:04d}.png", tile.astype(np.uint8), info.palette)
            path = root / split / "images" / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    save_dataset_info(root, info)


def build_config(steps: int) -> TrainConfig:
    """Builds the training config: 0.5 million weights, 16 tiles per step."""
    unet = {
        "base_channels": 16,
        "channel_mult": [1, 2, 3],
        "num_res_blocks": 1,
        "attention_resolutions": [8],
        "num_head_channels": 16,
        "norm_groups": 8,
    }
    values = {
        "run_dir": str(RUN / "run"),
        "data": {"dataset": str(RUN / "discs"), "image_size": EDGE},
        "generator": {
            "kind": "joint_diffusion",
            "unet": unet,
            "self_conditioning": 0,
            "levels": {"equal": 0.4, "clean_mask": 0.15, "clean_image": 0.1, "no_image": 0.25},
        },
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "learning_rate": 1e-3,
            "ema_decay": 0.998,
            "checkpoint_every": 200,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"every": 500, "crops": 128},
        "measurement": {"every": None},
    }
    return parse_config(values, TrainConfig)


def train_world(steps: int) -> None:
    """Trains, or resumes, and stores the CPU seconds."""
    if not (RUN / "discs").is_dir():
        write_world(RUN / "discs")
    start = time.process_time()
    train(build_config(steps), LinePrinter(), resume=True)
    save_json(RUN / "training.json", {"steps": steps, "cpu_seconds": time.process_time() - start})


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "measure"))
    parser.add_argument("--steps", type=int, default=3400)
    arguments = parser.parse_args()
    train_world(arguments.steps)


if __name__ == "__main__":
    main()

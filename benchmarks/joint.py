"""Pairs, masks, and labels of `joint_diffusion` on overlapping discs whose statistics are known.

    python benchmarks/joint.py train        trains on 512 tiles of the disc world
    python benchmarks/joint.py measure      measures pairs, phase fractions, images for masks, and labels

The disc world: discs of radius 4 px at Poisson places cover a quarter of tiles of 32² px; the image is
0.35 + 0.3·blur(mask, 0.7 px) + noise of standard deviation 0.08. A Gaussian field cut at a level, and 16 tiles with
their 8 symmetries in place of a generator, are measured by the same figures; each must fail in one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, label
from scipy.stats import norm, spearmanr, wasserstein_distance

from steelgen.config.base import parse_config
from steelgen.config.learned import LearnedMasks
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.crops import tensor_to_image
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry, apply_symmetry
from steelgen.evaluation.microstructure import compute_lineal_path, compute_s2
from steelgen.files import save_json
from steelgen.generators import DrawRequest
from steelgen.generators.families import load_generator
from steelgen.sampling.learned import LearnedSource
from steelgen.sampling.sheet import save_sheet
from steelgen.training.loop import train

EDGE, RADIUS, FRACTION = 32, 4, 0.25
TILES = {"train": 512, "val": 128}
RUN = Path("runs/benchmarks/joint")
BARS = {"fraction": 0.02, "s2": 0.06, "lineal_path": 0.08, "island_area": 0.12, "island_count": 0.15}
"""Largest deviations that count as the disc world."""
PAIR_IOU = 0.85
FRACTIONS, MASKS_PER_FRACTION = (0.1, 0.25, 0.4), 48
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
        "diffusion": {"timestep_sampling": "lognormal", "lognormal_mean": 0.3, "lognormal_std": 1.5},
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
    """Trains, or resumes, and stores the steps and the CPU seconds of all calls."""
    if not (RUN / "discs").is_dir():
        write_world(RUN / "discs")
    path, start = RUN / "training.json", time.process_time()
    before = json.loads(path.read_text(encoding="utf-8"))["cpu_seconds"] if path.is_file() else 0.0
    result = train(build_config(steps), LinePrinter(), resume=True)
    save_json(path, {"steps": result.global_step, "cpu_seconds": before + time.process_time() - start})


def cut_fields(count: int, seed: int) -> Array:
    """Samples tiles of a Gaussian field cut at a level, with the two-point correlation of the discs.

    The field's correlation follows from the integral of the bivariate normal density over its correlation (Sheppard).
    """
    distances = np.arange(2 * RADIUS + 1e-9, step=0.05)
    ratio = distances / (2 * RADIUS)
    overlap = 2 * RADIUS**2 * (np.arccos(ratio) - ratio * np.sqrt(1 - ratio**2))
    density = -math.log(1 - FRACTION) / (math.pi * RADIUS**2)
    wanted = 2 * FRACTION - 1 + (1 - FRACTION) ** 2 * np.exp(density * overlap)
    level, steps = norm.isf(FRACTION), np.linspace(0, 1 - 1e-6, 20_000)
    joint = np.exp(-(level**2) / (1 + steps)) / (2 * math.pi * np.sqrt(1 - steps**2))
    both = FRACTION**2 + np.concatenate([[0], np.cumsum((joint[1:] + joint[:-1]) / 2 * np.diff(steps))])
    correlation = np.interp(wanted, both, steps)
    edge = 2 * EDGE
    offsets = np.minimum(np.arange(edge), edge - np.arange(edge))
    covariance = np.interp(np.hypot(offsets[:, None], offsets[None]), distances, correlation, right=0)
    power = np.fft.fft2(covariance).real.clip(0)
    noise = np.random.default_rng(seed).normal(size=(count, edge, edge))
    field = np.fft.ifft2(np.fft.fft2(noise) * np.sqrt(power)).real / math.sqrt(power.mean())
    return field[:, :EDGE, :EDGE] > level


def repeat_tiles(tiles: Array, count: int, seed: int) -> Array:
    """Samples 16 tiles in 8 symmetries."""
    rng = np.random.default_rng(seed)
    return np.stack([apply_symmetry(tiles[rng.integers(16)], int(rng.integers(8))) for _ in range(count)])


def measure_islands(tiles: Array) -> tuple[Array, Array]:
    """Measures the areas of all islands, in px, and their number in each tile."""
    labeled = [label(tile, np.ones((3, 3))) for tile in tiles]
    return np.concatenate([np.bincount(found.ravel())[1:] for found, _ in labeled]), np.array([n for _, n in labeled])


def compare_structure(tiles: Array, reference: Array) -> dict[str, float]:
    """Compares tiles (N, 32, 32) bool with the reference; Wasserstein distances are relative to its mean."""
    reach, both = EDGE // 2, (tiles, reference)
    s2, path = ([compute(each, reach).mean(axis=0) for each in both] for compute in (compute_s2, compute_lineal_path))
    (areas, counts), (reference_areas, reference_counts) = (measure_islands(each) for each in both)
    return {
        "fraction": float(tiles.mean() - reference.mean()),
        "s2": float(np.abs(s2[0] - s2[1]).sum() / s2[1].sum()),
        "lineal_path": float(np.abs(path[0] - path[1]).sum() / path[1].sum()),
        "island_area": float(wasserstein_distance(areas, reference_areas) / reference_areas.mean()),
        "island_count": float(wasserstein_distance(counts, reference_counts) / reference_counts.mean()),
    }


def share_copies(items: Array, training: Array) -> float:
    """Share of items (N, 32, 32) much closer to one training item, in any symmetry, than to any other (d1/d2 < 1/3)."""
    flat = items.reshape(len(items), -1).astype(np.float32)
    nearest = np.full((len(items), len(training)), np.inf, np.float32)
    for symmetry in range(8):
        turned = np.stack([apply_symmetry(each, symmetry) for each in training])
        other = turned.reshape(len(training), -1).astype(np.float32)
        squares = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * flat @ other.T
        nearest = np.minimum(nearest, squares)
    first, second = np.sqrt(np.sort(nearest.clip(0), axis=1)[:, :2].T)
    return float((first < second / 3).mean())


def measure_match(tiles: Array, images: Array) -> float:
    """Mean IoU over the set of masks and their images, smoothed and cut between the two gray levels."""
    shown = gaussian_filter(images / 255, (0, 0.7, 0.7)) > 0.5
    return float((shown & tiles).sum() / (shown | tiles).sum())


def measure_pairs(tiles: Array, images: Array, reference: Array, training: Array, rendered: Array) -> dict[str, float]:
    """Measures everything about pairs."""
    return {
        **compare_structure(tiles, reference),
        "pair_iou": measure_match(tiles, images),
        "mask_copies": share_copies(tiles, training),
        "image_copies": share_copies(images / 255, rendered / 255),
    }


def list_failures(measured: dict[str, float], floor: dict[str, float]) -> list[str]:
    """Lists the figures that miss their bars."""
    bars = {**BARS, **{name: floor[name] + 0.05 for name in ("mask_copies", "image_copies")}}
    failed = [name for name, bar in bars.items() if abs(measured[name]) > bar]
    return failed + (["pair_iou"] if measured["pair_iou"] < PAIR_IOU else [])


def measure_world(count: int, steps: int) -> dict[str, Any]:
    """Measures the trained generator and what it is compared with."""
    solver, generator = SolverSection(num_inference_steps=steps), load_generator(RUN / "run")
    training, held_out, reference = (
        sample_discs(TILES["train"], 0),
        sample_discs(TILES["val"], 1),
        sample_discs(4096, 7),
    )
    rendered, shown = render(training, 100), render(held_out, 101)
    floor = measure_pairs(true := sample_discs(count, 8), render(true, 9), reference, training, rendered)
    start = time.process_time()
    drawn = generator.draw(DrawRequest(range(count), solver=solver))
    seconds = (time.process_time() - start) / count
    assert drawn.masks is not None
    tiles, images = drawn.masks.numpy() == 1, to_images(drawn.images)
    toys = {
        "level-cut field": cut_fields(count, 3),
        "memorizer": repeat_tiles(training, count, 4),
        "pixels shuffled": np.random.default_rng(5).permuted(true.reshape(count, -1), axis=1).reshape(true.shape),
    }
    systems = {"true process": floor, "joint": measure_pairs(tiles, images, reference, training, rendered)}
    for name, toy in toys.items():
        systems[name] = measure_pairs(toy, render(toy, 6), reference, training, rendered)
    failures = {name: list_failures(measured, floor) for name, measured in systems.items()}
    given = torch.from_numpy(held_out.astype(np.int64))
    for_masks = to_images(generator.draw(DrawRequest(range(len(given)), masks=given, solver=solver)).images)
    seen = torch.from_numpy(shown.astype(np.float32))[:, None] / 127.5 - 1
    votes = [generator.draw(DrawRequest([seed] * len(seen), images=seen, solver=solver)).masks for seed in range(4)]
    labels = torch.stack([mask for mask in votes if mask is not None]).float()
    voted = (labels.mean(dim=0) > 0.5).numpy()
    share = labels.mean(dim=0).numpy()
    agreement = np.maximum(share, 1 - share)
    wrong = voted != held_out
    save_pairs(RUN / "pairs.png", tiles, images)
    save_pairs(RUN / "for-masks.png", held_out, for_masks)
    return {
        "systems": systems,
        "failures": failures,
        "count": count,
        "solver_steps": steps,
        "seconds_per_pair": seconds,
        "image_for_mask_iou": measure_match(held_out, for_masks),
        "mask_for_image_iou": float((voted & held_out).sum() / (voted | held_out).sum()),
        "threshold_iou": measure_match(held_out, shown),
        "error_where_draws_agree": float(wrong[agreement == 1].mean()),
        "error_where_they_disagree": float(wrong[agreement < 1].mean()) if (agreement < 1).any() else None,
        "fractions": measure_fractions(solver),
    }


def measure_fractions(solver: SolverSection) -> dict[str, Any]:
    """Asks for phase fractions: without dropping any mask, and within the tolerance of the mask source."""
    info, geometry = DatasetInfo(name="discs", class_names=["matrix", "disc"]), CropGeometry(EDGE, EDGE)
    found: dict[str, Any] = {}
    for name, tolerance in (("none dropped", 1.0), ("within 0.02", 0.02)):
        asked, met, attempts = [], [], 0
        for fraction in FRACTIONS:
            config = LearnedMasks(
                generator=RUN / "run", phase_fraction={"disc": fraction}, tolerance=tolerance, solver=solver
            )
            source = LearnedSource(config, info, geometry, 0)
            for index in range(MASKS_PER_FRACTION):
                drawn = source.draw(index)
                assert drawn.origin is not None
                attempts += drawn.origin["attempts"]
                asked.append(fraction)
                met.append(float((drawn.mask == 1).mean()))
        means = np.reshape(met, (len(FRACTIONS), -1)).mean(axis=1)
        found[name] = {
            "means": dict(zip(map(str, FRACTIONS), map(float, means), strict=True)),
            "rank_correlation": float(spearmanr(asked, met).statistic),
            "attempts_per_mask": attempts / len(met),
        }
    return found


def to_images(images: torch.Tensor | None) -> Array:
    """Converts tensors (N, 1, 32, 32) to (N, 32, 32) uint8."""
    assert images is not None
    return np.stack([tensor_to_image(image) for image in images])


def save_pairs(path: Path, tiles: Array, images: Array) -> None:
    """Writes a sheet of 48 pairs."""
    save_sheet(
        path, tiles[:48].astype(np.uint8), list(images[:48]), [None] * 48, [(0, 0, 0), (255, 255, 255)], 8, 1600, 64
    )


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "measure"))
    parser.add_argument("--steps", type=int, default=8000, help="training steps")
    parser.add_argument("--solver-steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "joint.json")
    arguments = parser.parse_args()
    if arguments.part == "train":
        train_world(arguments.steps)
    else:
        training = json.loads((RUN / "training.json").read_text(encoding="utf-8"))
        save_results(arguments.out, {"training": training, **measure_world(arguments.pairs, arguments.solver_steps)})


if __name__ == "__main__":
    main()

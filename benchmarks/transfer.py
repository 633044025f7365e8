"""Training from scratch and fine-tuning the bundled models on datasets that they have not seen.

    python benchmarks/transfer.py time
    python benchmarks/transfer.py run --dataset data/pretraining/uhcs_spheroidite --start base --micrographs 4 --seed 0
    python benchmarks/transfer.py table

All starts train the network of the bundled models on the same crops for the same number of steps, those that fit into
`--minutes` of one core; `time` measures a step in CPU time, so that other load does not matter. Two fifths of the
micrographs of a dataset are held out: validation loss, KID of images drawn for their masks, and copies are measured by
the training itself, always on the same crops. The training micrographs of fewer are among those of more. `run` resumes
after interruption if called with the same arguments; `table` gathers all runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from charts import plot_grid
from common import save_results, summarize
from fitting import train_to_end
from steps import TrainingStep

from steelgen.config.base import parse_config
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.folder import list_pairs
from steelgen.data.resplit import resplit_dataset
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder
from steelgen.planning.rules import SMALL_NETWORK
from steelgen.runs import read_metrics

RESULTS = Path(__file__).parent / "results"
DATASETS = ("data/pretraining/uhcs_spheroidite", "data/pretraining/tem_316l_loops")
"""Sets that the bundled base model has not seen."""
ALL_BUT_MASK_LAYERS = ["input", "time", "encoder", "middle", "decoder"]
"""Frozen parts with which only the layers that see the mask and the output are trained."""
STARTS: dict[str, dict[str, Any]] = {
    "scratch": {"learning_rate": 1e-3},
    "uhcs": {"checkpoint": "bundled:uhcs", "learning_rate": 3e-4},
    "base": {"checkpoint": "bundled:base", "learning_rate": 3e-4},
    "base_fast": {"checkpoint": "bundled:base", "learning_rate": 1e-3},
    "base_frozen": {"checkpoint": "bundled:base", "learning_rate": 1e-3, "freeze": ALL_BUT_MASK_LAYERS},
}
"""Checkpoint, learning rate and frozen parts; training from scratch has no checkpoint."""
HELD_OUT = 0.4
BATCH_SIZE = 16
FIGURES = ("val_loss", "kid", "kid_floor", "copies", "copies_floor")


def prepare_dataset(source: Path, count: int, seed: int, folder: Path) -> Path:
    """Writes a dataset folder with `count` (0: all) training micrographs and the held-out ones as val, once."""
    whole, out = folder / source.name, folder / f"{source.name}-{count}-seed{seed}"
    if not whole.exists():
        resplit_dataset(source, whole, {"train": 1 - HELD_OUT, "val": HELD_OUT})
    if not count:
        return whole
    if not out.exists():
        pairs = list_pairs(whole, "train")
        if count > len(pairs):
            raise InputError(f"{source}: has {len(pairs)} training micrographs, fewer than {count}")
        chosen = [pairs[index] for index in np.random.default_rng(seed).permutation(len(pairs))[:count]]
        with new_folder(out) as working:
            shutil.copy(whole / "dataset.json", working)
            shutil.copytree(whole / "val", working / "val")
            for pair in chosen:
                for path in (pair.image, pair.mask):
                    target = working / path.relative_to(whole)  # type: ignore[union-attr]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)  # type: ignore[arg-type]
    return out


def build_config(dataset: Path, start: str, seed: int, run_dir: Path, steps: int, images: int) -> Any:
    """Config of one run."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "seed": seed,
        "data": {"dataset": str(dataset), "image_size": 64, "crop_size": 128},
        "train": {
            "max_steps": steps,
            "train_batch_size": BATCH_SIZE,
            "learning_rate": STARTS[start]["learning_rate"],
            "warmup_steps": min(100, max(1, steps // 10)),
            "ema_decay": round(1 - 10 / max(steps, 20), 4),
            "mixed_precision": "auto",
            "checkpoint_every": max(1, steps // 4),
            "keep_checkpoints": 1,
        },
        "preview": {"every": steps, "num_images": 8},
        "validation": {"every": max(1, steps // 8), "crops": 64},
        "measurement": {"every": max(1, steps // 4), "num_images": images, "searched_images": 16},
    }
    if start == "scratch":
        return parse_config({**values, "generator": {"unet": dict(SMALL_NETWORK)}}, TrainConfig)
    kept = {name: value for name, value in STARTS[start].items() if name != "learning_rate"}
    return parse_config({**values, **kept}, FinetuneConfig)


def measure_step(arguments: argparse.Namespace) -> None:
    """Measures the CPU time of a training step, the same for all starts, after a first one."""
    dataset = prepare_dataset(Path(arguments.dataset), 0, 0, arguments.runs / "data")
    config = build_config(dataset, "scratch", 0, arguments.runs / "unused", 1, 4)
    step, seconds = TrainingStep(config), []
    for _ in range(1 + arguments.repeats):
        begin = time.process_time()
        step()
        seconds.append(time.process_time() - begin)
    save_results(arguments.runs / "step_time.json", {"threads": 1, "seconds_a_step": summarize(seconds[1:])})


def run(arguments: argparse.Namespace) -> None:
    """Trains one start on one dataset, or resumes it."""
    seconds = load_json(arguments.runs / "step_time.json")["seconds_a_step"]["median"]
    steps = max(8, round(60 * arguments.minutes / seconds))
    source, count, seed = Path(arguments.dataset), arguments.micrographs, arguments.seed
    dataset = prepare_dataset(source, count, seed, arguments.runs / "data")
    name = f"{source.name}-{arguments.start}-{count or 'all'}-seed{seed}-{arguments.minutes:g}min"
    config = build_config(dataset, arguments.start, seed, arguments.runs / name, steps, arguments.images)
    train_to_end(config)


def gather(runs: Path) -> list[dict[str, Any]]:
    """The curves of all finished runs, in the order of datasets, micrographs and starts."""
    found = []
    for path in runs.glob("*-seed*-*min/result.json"):
        dataset, start, count, seed, _ = path.parent.name.rsplit("-", 4)
        rows = [values for _, values in read_metrics(path.parent / "metrics.jsonl")]
        curves = {
            name: [[int(row["step"]), row[name]] for row in rows if name in row]
            for name in FIGURES
            if any(name in row for row in rows)
        }
        config = load_json(path.parent / "config.json")
        training = len(list_pairs(Path(config["data"]["dataset"]), "train"))
        run = {"dataset": dataset, "start": start, "micrographs": count, "training_micrographs": training}
        found.append({**run, "seed": int(seed.removeprefix("seed")), "steps": load_json(path)["global_step"], **curves})
    order = {start: index for index, start in enumerate(STARTS)}
    return sorted(found, key=lambda run: (run["dataset"], run["training_micrographs"], order[run["start"]]))


def write_table(arguments: argparse.Namespace) -> None:
    """Gathers all runs and plots their curves: a row of charts per dataset and number of micrographs."""
    runs = gather(arguments.runs)
    charts: dict[tuple[str, str], dict[str, list[list[tuple[float, float]]]]] = {}
    for each in runs:
        for name, title in (("val_loss", "validation loss"), ("kid", "KID")):
            place = (f"{each['dataset']}, {each['training_micrographs']} micrographs", title)
            curve = [(step, value) for step, value in each[name]]
            charts.setdefault(place, {}).setdefault(each["start"], []).append(curve)
    charts = {place: starts for place, starts in charts.items() if len(starts) > 1}
    plot_grid(charts, "steps of 16 crops", RESULTS / "transfer.png")
    times = load_json(arguments.runs / "step_time.json")["seconds_a_step"]
    made_by = next(arguments.runs.glob("*min"), None)
    save_results(RESULTS / "transfer.json", {"seconds_a_step": times, "runs": runs}, show=False, run_dir=made_by)


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/transfer"), help="folder of the runs")
    parser.add_argument("--dataset", default=DATASETS[0], help="a dataset folder with masks")
    parser.add_argument("--start", choices=STARTS, default="base")
    parser.add_argument("--micrographs", type=int, default=0, help="training micrographs; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=2, help="minutes of one core, for the training steps")
    parser.add_argument("--images", type=int, default=64, help="images per KID")
    parser.add_argument("--repeats", type=int, default=5, help="steps in `time`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "time":
        measure_step(arguments)
    elif arguments.part == "run":
        os.nice(10)
        run(arguments)
    else:
        write_table(arguments)


if __name__ == "__main__":
    main()

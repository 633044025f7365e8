"""The segmenter in the loop: emphasis and gain filter against the plain mix, at equal training time.

    python benchmarks/steering.py run --seeds 3
    python benchmarks/steering.py table

As the studies of utility.py: 256 pairs of the bundled model are added to a quarter of the training micrographs of uhcs,
SegFormer, the same steps for all. `emphasis` chooses masks by the errors of a SegFormer of `steelgen segment train` on
the validation micrographs, trained on all training micrographs, which the bundled model has seen, too; `gain` drops
pairs whose gradients disagree with crops of the validation micrographs, and `weights` shows those that are left in
proportion to their agreement. Seeds are finished one by one, with all arms.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from utility import DATASET, RESULTS, SEEDS, Cells, compare, read_cells, sample_pairs

from steelgen.config.base import parse_config
from steelgen.config.segment import SegmentConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.folder import list_images, load_dataset_info, load_mask, load_metadata
from steelgen.evaluation.segment import train_labeler
from steelgen.evaluation.study import utility
from steelgen.files import load_json, new_folder, save_json

GAIN_SETTINGS = {"dataset": str(DATASET), "min_iou": 0, "max_correlation": 1, "gain": {"weigh": True}}
ARMS = {"plain": "split", "emphasis": "emphasized", "gain": "gained", "weights": "weighed"}
"""Set of pairs by arm."""
CODE, REAL = "R25%FALL", "R25%F000"
STEPS = 300


def train_once(runs: Path) -> Path:
    """Trains the segmenter whose errors the emphasis uses, at the scale of the study; returns its folder."""
    folder = runs / "segmenter"
    if not folder.is_dir():
        values = {
            "dataset": str(DATASET),
            "output_dir": str(folder),
            "image_size": 64,
            "crop_size": 128,
            "segmenter": {"architecture": "segformer", "steps": STEPS, "batch_size": 16, "enlargement": 1.0},
        }
        train_labeler(parse_config(values, SegmentConfig))
    return folder


def sample_sets(runs: Path) -> None:
    """Samples the sets of pairs that are missing, and notes the CPU time of each with what it needs."""
    for name in ("split", "emphasized", "weighed"):
        folder, start = runs / "sets" / name, time.process_time()
        if (runs / "sets" / f"{name}.json").is_file():
            continue
        changes: dict[str, Any] = {}
        if name == "emphasized":
            changes["emphasis"] = {"segmenter": str(train_once(runs))}
        if name == "weighed":
            changes["filter"] = GAIN_SETTINGS
        sample_pairs(folder, **changes)
        save_json(runs / "sets" / f"{name}.json", {"seconds": round(time.process_time() - start, 1)})
    if not (runs / "sets" / "gained").is_dir():  # the same pairs without weights
        with new_folder(runs / "sets" / "gained") as working:
            shutil.copytree(runs / "sets" / "weighed", working, dirs_exist_ok=True)
            (working / "metadata.jsonl").unlink()


def run_studies(runs: Path, num_seeds: int) -> None:
    """Trains the missing networks, seed by seed."""
    for count in range(1, num_seeds + 1):
        for arm, pairs in ARMS.items():
            values = {
                "dataset": str(DATASET),
                "generated": str(runs / "sets" / pairs),
                "output_dir": str(runs / "steering" / arm),
                "codes": [REAL, CODE] if arm == "plain" else [CODE],
                "architectures": ["segformer"],
                "seeds": list(SEEDS[:count]),
                "mixed_precision": "auto",
                "training": {"steps": STEPS},
            }
            config = parse_config(values, UtilityConfig)
            utility(config, lambda line, arm=arm: print(arm, line, flush=True))  # type: ignore[misc]


def describe_set(folder: Path) -> dict[str, Any]:
    """Mean area share of each class, and the counts and gains of the filter."""
    info = load_dataset_info(folder)
    masks = [load_mask(path, info) for path in list_images(folder / "labels")]
    shares = np.mean(
        [np.bincount(mask.ravel(), minlength=256)[: info.num_classes] / mask.size for mask in masks], axis=0
    )
    sampling = load_json(folder / "sampling.json")
    gains = [row["gain"] for row in load_metadata(folder).values() if "gain" in row]
    return {
        "class_share": dict(zip(info.class_names, shares.round(4).tolist(), strict=True)),
        "kept": len(masks),
        "dropped": sum(sampling.get("dropped", {}).values()),
        **({"gain_quartiles": np.quantile(gains, [0.25, 0.5, 0.75]).round(3).tolist()} if gains else {}),
    }


def gather(runs: Path) -> dict[str, Any]:
    """Gains of each arm over real micrographs alone, and differences to the plain mix."""
    plain = read_cells(runs / "steering" / "plain")
    mixed: Cells = {
        ("plain", architecture, seed): {**cell, "num_generated": 0}  # takes the place of the code without pairs
        for (code, architecture, seed), cell in plain.items()
        if code == CODE
    }
    rows = []
    for arm in ARMS:
        cells = {key: cell for key, cell in read_cells(runs / "steering" / arm).items() if key[0] == CODE}
        rows += [{"arm": arm, **row} for row in compare(cells, plain, CODE, REAL)]
        if arm != "plain":
            rows += [{"arm": arm, **row} for row in compare(cells, mixed, CODE, "plain")]
    seconds = {
        name: load_json(runs / "sets" / f"{name}.json")["seconds"] for name in ("split", "emphasized", "weighed")
    }
    sets = {name: describe_set(runs / "sets" / name) for name in ("split", "emphasized", "weighed")}
    emphasis = load_json(runs / "sets" / "emphasized" / "emphasis.json")
    return {"steps": STEPS, "differences": rows, "sets": sets, "sampling_seconds": seconds, "emphasis": emphasis}


def main() -> None:
    """Trains what is missing, or gathers the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/utility"), help="folder of all outputs")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part == "run":
        sample_sets(arguments.runs)
        run_studies(arguments.runs, arguments.seeds)
        return
    save_results(RESULTS / "steering.json", gather(arguments.runs))


if __name__ == "__main__":
    main()

"""Generators of different families on one small set at equal training time (uhcs, 32 px).

    OMP_NUM_THREADS=1 python benchmarks/families.py run --minutes 10
    python benchmarks/families.py table

`run` is `steelgen compare --families` with the networks below, each small enough for a CPU core; it resumes. Training
time is by the wall clock: run it on an idle core. `table` writes the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import save_results

from steelgen.cli.workflow import run_stage
from steelgen.config.base import parse_config
from steelgen.config.families import FamiliesConfig
from steelgen.family_comparison import RESULT, compare_families
from steelgen.files import load_json, save_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_UNET = {
    "base_channels": 16,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "num_head_channels": 16,
    "norm_groups": 8,
}
_SEMANTIC = {"kind": "semantic_diffusion", "unet": {**_UNET, "spade_channels": 32}}
_STYLE = {"kind": "gan", "architecture": "style", "base_channels": 16, "ada_images": 20000}
_ADVERSARIAL = {"learning_rate": 0.002, "weight_decay": 0.0, "max_grad_norm": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "semantic diffusion": {"generator": _SEMANTIC},
    "masked style GAN": {
        "generator": {**_STYLE, "condition": "mask", "spade_channels": 16},
        "train": _ADVERSARIAL,
    },
    "joint diffusion": {"generator": {"kind": "joint_diffusion", "unet": _UNET}},
    "diffusion without masks": {"generator": _SEMANTIC, "data": {"unconditional": True}},
    "style GAN": {"generator": _STYLE, "train": _ADVERSARIAL},
    "DCGAN": {"generator": {"kind": "gan", "base_channels": 32}, "train": {**_ADVERSARIAL, "learning_rate": 0.0002}},
}
"""What differs from the shared config of training."""


def build_training(changes: dict[str, Any]) -> dict[str, Any]:
    """Builds the values of a family's training config; the comparison sets run folder, dataset, crops and time."""
    return {
        "run_dir": "unused",
        "data": {"dataset": "unused", "image_size": 32, "crop_size": 64, **changes.get("data", {})},
        "generator": changes["generator"],
        "train": {
            "max_steps": 1_000_000,
            "train_batch_size": 16,
            "learning_rate": 0.001,
            "warmup_steps": 50,
            "ema_decay": 0.995,
            "checkpoint_every": 500,
            "keep_checkpoints": 1,
            "trackers": [],
            **changes.get("train", {}),
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
    }


def build_comparison(runs: Path, minutes: float, images: int) -> FamiliesConfig:
    """Writes the training configs of all families and builds the comparison's."""
    families = {}
    for name, changes in FAMILIES.items():
        path = runs / "configs" / f"{name.replace(' ', '-')}.json"
        save_json(path, build_training(changes))
        families[path.stem] = {"config": str(path)}
    values = {
        "dataset": str(ROOT / "data" / "uhcs"),
        "output_dir": str(runs / "comparison"),
        "families": families,
        "minutes": minutes,
        "image_size": 32,
        "crop_size": 64,
        "num_samples": images,
        "utility": {"codes": ["R25%F000", "R25%FALL"], "training": {"steps": 150}},
    }
    return parse_config(values, FamiliesConfig)


def write_table(runs: Path) -> None:
    """Stores what tells the families apart."""
    result = load_json(runs / "comparison" / RESULT)
    kept = ("name", "kind", "steps", "training_minutes", "parameters")
    rows = [{key: family[key] for key in kept} for family in result["families"]]
    shown = {key: result["config"][key] for key in ("minutes", "image_size", "num_samples")}
    save_results(RESULTS / "families.json", {**shown, "families": rows, "figures": result["figures"]})


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/families"), help="folder of runs")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time per family")
    parser.add_argument("--images", type=int, default=256, help="images per family")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "run":
        config = build_comparison(arguments.runs, arguments.minutes, arguments.images)
        compare_families(config, run_stage, lambda line: print(line, flush=True))
    else:
        write_table(arguments.runs)


if __name__ == "__main__":
    main()

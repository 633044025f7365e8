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
from gan import SYSTEMS, UNET, build_values

from steelgen.cli.workflow import run_stage
from steelgen.config.base import parse_config
from steelgen.config.families import FamiliesConfig
from steelgen.family_comparison import RESULT, compare_families
from steelgen.files import load_json, save_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_NO_END = 1_000_000
_CHECKPOINT_EVERY = 500
"""Rare, since the time of training is that of the clock."""
_JOINT_UNET = {key: value for key, value in UNET.items() if key != "spade_channels"}
FAMILIES: dict[str, dict[str, Any]] = {
    "semantic-diffusion": SYSTEMS["masked-diffusion"],
    "masked-style-GAN": SYSTEMS["masked-fine"],
    "joint-diffusion": {
        "generator": {"kind": "joint_diffusion", "unet": _JOINT_UNET},
        "train": SYSTEMS["diffusion"]["train"],
    },
    "diffusion-without-masks": SYSTEMS["diffusion"],
    "style-GAN": SYSTEMS["style"],
    "DCGAN": SYSTEMS["dcgan"],
}
"""Systems of benchmarks/gan.py, and joint diffusion with the same levels."""


def build_comparison(runs: Path, minutes: float, images: int) -> FamiliesConfig:
    """Writes the training configs of all families and builds the comparison's."""
    families = {}
    for name, system in FAMILIES.items():
        path = runs / "configs" / f"{name}.json"
        # The comparison sets run folder, dataset, crops and time.
        values = build_values(system, Path("unused"), Path("unused"), 0, _NO_END)
        values["train"]["checkpoint_every"] = _CHECKPOINT_EVERY
        save_json(path, values)
        families[name] = {"config": str(path)}
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

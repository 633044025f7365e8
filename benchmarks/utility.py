"""Does generated data help? The bundled model's pairs beside real micrographs, and what changes the answer.

    python benchmarks/utility.py run --study main
    python benchmarks/utility.py run --study augmented
    python benchmarks/utility.py table

`main` trains three architectures with three seeds on a quarter and on all of the real training micrographs of uhcs,
with and without pairs that the bundled model has drawn. The others change one thing each, where real data is scarce:
where masks come from, what is kept, guidance, how many pairs, how they are mixed with real ones, and for how long
networks train. `run` may be killed and started again. The bundled model was trained on all training micrographs, also
where networks see a quarter of them: so this asks what a laboratory gains from a model of another that shares no
micrographs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from common import save_results

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.utility import UtilityConfig
from steelgen.evaluation.utility.study import utility
from steelgen.files import load_json
from steelgen.sampling.run import sample

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ["upernet", "segformer", "deeplabv3plus"]
PAIRS = 256
LONGER_STEPS = 900

SETS: dict[str, dict[str, Any]] = {
    "split": {},
    "augmented": {"mask_source": {"kind": "augmented", "dataset": str(DATASET)}},
    "procedural": {"mask_source": {"kind": "procedural", "dataset": str(DATASET)}},
    "filtered": {"filter": {"dataset": str(DATASET), "segmenter": {"steps": 300}}},
    "unguided": {"solver": {"guidance_scale": 1.0}},
    "guided-everywhere": {"solver": {"guidance_interval": None}},
}
"""How pairs are drawn, as changes of: masks of the training split, flipped and turned; default solver, no filter."""
STUDIES: dict[str, tuple[str, dict[str, Any]]] = {
    "main": ("split", {"codes": ["R25%F000", "R25%FALL", "RALLF000", "RALLFALL"], "architectures": ARCHITECTURES}),
    "augmented": ("augmented", {}),
    "procedural": ("procedural", {}),
    "filtered": ("filtered", {}),
    "unguided": ("unguided", {}),
    "guided-everywhere": ("guided-everywhere", {}),
    "half-real": ("split", {"training": {"real_share": 0.5}}),
    "pretrain": ("split", {"training": {"schedule": "pretrain"}}),
    "fewer": ("split", {"codes": ["R25%F64"]}),
    "longer": (
        "split",
        {"codes": ["R25%F000", "R25%FALL", "RALLF000", "RALLFALL"], "training": {"steps": LONGER_STEPS}},
    ),
}
"""(set, changes of: the code R25%FALL, SegFormer alone, three seeds, --steps steps)."""


def draw(runs: Path, name: str) -> Path:
    """Draws a set where it is not complete; returns its folder."""
    values = {
        "generator": "bundled:uhcs",
        "output_dir": str(runs / "sets" / name),
        "mask_source": {"kind": "split", "dataset": str(DATASET)},
        "num_samples": PAIRS,
        "batch_size": 32,
        "mixed_precision": "auto",
        **SETS[name],
    }
    return sample(parse_config(values, SampleConfig), lambda done, total: None)


def run_study(runs: Path, name: str, steps: int) -> None:
    """Trains the networks of a study that are missing."""
    pairs, changes = STUDIES[name]
    folder = draw(runs, pairs)
    values = {
        "dataset": str(DATASET),
        "generated": str(folder),
        "output_dir": str(runs / "studies" / name),
        "codes": ["R25%FALL"],
        "architectures": ["segformer"],
        "seeds": [0, 1, 2],
        "mixed_precision": "auto",
        **changes,
        "training": {"steps": steps, **changes.get("training", {})},
    }
    utility(parse_config(values, UtilityConfig), lambda line: print(name, line, flush=True))


def read_cells(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Finished networks by code, architecture and seed."""
    cells = [load_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    return {(cell["code"], cell["architecture"], cell["seed"]): cell for cell in cells}


def gather(runs: Path) -> dict[str, Any]:
    """The main study's differences and scores, and every study's gain over real micrographs alone by network."""
    study = load_json(runs / "studies" / "main" / "utility.json")
    main = read_cells(runs / "studies" / "main")
    variants = []
    for name, (pairs, _) in STUDIES.items():
        gains: dict[tuple[str, str], list[float]] = {}
        cells = read_cells(runs / "studies" / name)
        for (code, architecture, seed), cell in cells.items():
            baseline = (main | cells)[f"{code.split('F')[0]}F000", architecture, seed]
            if cell["num_generated"]:
                gain = cell["test"]["mean_iou"] - baseline["test"]["mean_iou"]
                gains.setdefault((code, architecture), []).append(gain)
        variants += [
            {"study": name, "pairs": pairs, "code": code, "architecture": architecture, "by_seed": by_seed}
            for (code, architecture), by_seed in sorted(gains.items())
        ]
    return {"pairs": PAIRS, **{key: study[key] for key in ("differences", "scores")}, "variants": variants}


def main() -> None:
    """Runs one study or gathers all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/utility"), help="where everything is kept")
    parser.add_argument("--study", choices=STUDIES, default="main")
    parser.add_argument("--steps", type=int, default=300, help="of every network")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part == "run":
        run_study(arguments.runs, arguments.study, arguments.steps)
        return
    save_results(RESULTS / "utility.json", gather(arguments.runs))
    shutil.copyfile(arguments.runs / "studies" / "main" / "data_fraction.png", RESULTS / "utility.png")


if __name__ == "__main__":
    main()

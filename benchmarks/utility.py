"""Does generated data help? The bundled model's pairs beside real micrographs, and what changes the answer.

    python benchmarks/utility.py run --study main
    python benchmarks/utility.py run --study augmented
    python benchmarks/utility.py table

`main` trains three architectures with three seeds on a quarter and on all of the real training micrographs of uhcs,
with and without pairs that the bundled model has drawn. The others change one thing each, where real data is scarce:
where masks come from, what is kept, guidance, how many pairs, how they are mixed with real ones, and for how long
networks train. `run` may be killed and started again. The bundled model was trained on all training micrographs, also
where networks see a quarter of them: so this asks what a laboratory gains from a model of another that shares no
micrographs. What it gains from its own few is asked by `own`: for each seed a generator is trained on the very
micrographs that the networks see, and draws pairs for their masks.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results

from steelgen.config.base import load_config, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.crops import load_micrographs
from steelgen.errors import InputError
from steelgen.evaluation.utility.data import choose_subset
from steelgen.evaluation.utility.statistics import summarize
from steelgen.evaluation.utility.study import utility
from steelgen.files import load_json, new_folder
from steelgen.sampling.sample import sample
from steelgen.training.loop import train

ROOT = Path(__file__).parents[1]
DATASET = ROOT / "data" / "uhcs"
GENERATOR_CONFIG = ROOT / "configs" / "bundled" / "uhcs.json"
RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ["upernet", "segformer", "deeplabv3plus"]
SEEDS = (0, 1, 2)
PAIRS = 256
LONGER_STEPS = 900
OWN_STEPS = 1200

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
    "own": ("own", {"architectures": ARCHITECTURES}),
}
"""(set, changes of: the code R25%FALL, SegFormer alone, three seeds, --steps steps)."""

Cells = dict[tuple[str, str, int], dict[str, Any]]
"""Finished networks by code, architecture and seed."""


def draw(folder: Path, **changes: Any) -> Path:
    """Draws a set of pairs where it is not complete; returns its folder."""
    values = {
        "generator": "bundled:uhcs",
        "output_dir": str(folder),
        "mask_source": {"kind": "split", "dataset": str(DATASET)},
        "num_samples": PAIRS,
        "batch_size": 32,
        "mixed_precision": "auto",
        **changes,
    }
    return sample(parse_config(values, SampleConfig), lambda done, total: None)


def draw_own(runs: Path, seed: int) -> Path:
    """Pairs of a generator that has seen the micrographs of R25% of that seed alone, for their masks.

    Of its weights those of the lowest loss on the validation split are taken, by which the networks are chosen too.

    Raises:
        InputError: if a signal ended training.
    """
    dataset, run_dir = runs / "datasets" / f"own-{seed}", runs / "generators" / f"own-{seed}"
    if not dataset.is_dir():
        stems = load_micrographs(DATASET, "train").stems
        chosen = {stems[index] for index in choose_subset(len(stems), len(stems) // 4, seed)}
        with new_folder(dataset) as working:
            shutil.copytree(DATASET, working, dirs_exist_ok=True)
            for path in (working / "train").glob("*/*"):
                if path.stem not in chosen:
                    path.unlink()
    changes = {
        "run_dir": str(run_dir),
        "data.dataset": str(dataset),
        "seed": seed,
        "train.max_steps": OWN_STEPS,
        "validation.every": max(1, OWN_STEPS // 6),
    }
    config = load_config(
        GENERATOR_CONFIG, TrainConfig, [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    )
    result = train(config, LinePrinter(), resume=True)
    if result.export is None:
        raise InputError(f"{run_dir}: stopped by {result.stopped_by} at step {result.global_step}; start it again")
    source = {"kind": "split", "dataset": str(dataset)}
    return draw(runs / "sets" / f"own-{seed}", generator=str(run_dir / "best"), mask_source=source)


def run_study(runs: Path, name: str, steps: int) -> None:
    """Trains the networks of a study that are missing."""
    pairs, changes = STUDIES[name]
    own = pairs == "own"
    for seeds in [[seed] for seed in SEEDS] if own else [list(SEEDS)]:
        drawn = draw_own(runs, seeds[0]) if own else draw(runs / "sets" / pairs, **SETS[pairs])
        values = {
            "dataset": str(DATASET),
            "generated": str(drawn),
            "output_dir": str(runs / "studies" / name / (f"seed{seeds[0]}" if own else "")),
            "codes": ["R25%FALL"],
            "architectures": ["segformer"],
            "seeds": seeds,
            "mixed_precision": "auto",
            **changes,
            "training": {"steps": steps, **changes.get("training", {})},
        }
        utility(parse_config(values, UtilityConfig), lambda line: print(name, line, flush=True))


def read_cells(folder: Path) -> Cells:
    """The finished networks of a study, of all its parts."""
    cells = [load_json(path) for path in sorted(folder.glob("**/cells/*.json"))]
    return {(cell["code"], cell["architecture"], cell["seed"]): cell for cell in cells}


def compare(cells: Cells, others: Cells, code: str, baseline: str) -> list[dict[str, Any]]:
    """Differences of a study's code to its baseline, for the architectures and seeds that the study has of the code.

    Args:
        cells: of the study.
        others: where the baseline is looked up if the study has none of its own.

    Returns:
        Rows as in the `differences` of `steelgen utility`.
    """
    found = {(architecture, seed) for other, architecture, seed in cells if other == code}
    architectures, seeds = (list(dict.fromkeys(values)) for values in zip(*sorted(found), strict=True))
    known = others | cells
    confusions = {
        (each, name): np.array([known[each, name, seed]["test"]["confusion"] for seed in seeds])
        for each in (baseline, code)
        for name in architectures
    }
    example = {each: known[each, architectures[0], seeds[0]] for each in (baseline, code)}
    counts = {each: (len(cell["real"]), cell["num_generated"]) for each, cell in example.items()}
    return summarize(confusions, counts, UtilityConfig.model_fields["num_bootstrap"].default)["differences"]


def gather(runs: Path) -> dict[str, Any]:
    """The main study's differences and scores, and every other study's gain over real micrographs alone."""
    study = load_json(runs / "studies" / "main" / "utility.json")
    main = read_cells(runs / "studies" / "main")
    variants = []
    for name, (pairs, _) in STUDIES.items():
        cells = read_cells(runs / "studies" / name)
        for code in sorted({code for code, _, _ in cells if not code.endswith("F000")}):
            rows = compare(cells, main, code, f"{code.split('F')[0]}F000")
            variants += [{"study": name, "pairs": pairs, **row} for row in rows]
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

"""Variety of images: spread of gray level and contrast, and recall, against real crops of held-out micrographs.

    python benchmarks/variety.py run --dataset data/uhcs
    python benchmarks/variety.py run --dataset data/pretraining/uhcs_spheroidite
    python benchmarks/variety.py table

`run` samples with each of `SOLVERS` and three seeds for masks of held-out micrographs: with bundled:uhcs for uhcs, for
another dataset with bundled:base, fine-tuned on 60 % of its micrographs for --steps steps of 16 crops. Beside the
images, it scores real crops of the training micrographs: the floor, which a generator cannot be expected to pass. A
stopped training resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import save_results
from fitting import train_to_end
from transfer import build_config, prepare_dataset

from sampling import DATASET, Judge
from steelgen.config.solver import SolverSection
from steelgen.files import load_json, save_json
from steelgen.generators.families import load_generator
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion

RESULT = Path(__file__).parent / "results" / "variety.json"
SOLVERS: dict[str, dict[str, Any]] = {
    "before": {"guidance_scale": 1.5, "guidance_interval": (0.2, 2.0), "brightness": "network"},
    "measured brightness": {"guidance_scale": 1.5, "guidance_interval": (0.2, 2.0)},
    "default": {},
}
"""Changes of the default solver."""
SEEDS = 3


def run(arguments: argparse.Namespace) -> None:
    """Fine-tunes the generator of a dataset and scores it with all solvers."""
    source: Path = arguments.dataset
    path, dataset, split = Path("bundled:uhcs"), source, "test"
    if source.resolve() != DATASET:
        dataset, split = prepare_dataset(source, 0, 0, arguments.runs / "data"), "val"
        name = f"{source.name}-{arguments.steps}steps"
        config = build_config(dataset, "base_fast", 0, arguments.runs / name, arguments.steps, 16)
        path = train_to_end(config)
    generator = load_generator(path)
    assert isinstance(generator, SemanticDiffusion)
    generator.network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    judge = Judge(generator, arguments.images, dataset, split)
    scores: dict[str, list[dict[str, Any]]] = {}
    for name, changes in SOLVERS.items():
        solver = SolverSection().model_copy(update=changes)
        for seed in range(SEEDS):
            score = judge.score(lambda masks, seeds, solver=solver: judge.sample(solver, masks, seeds), seed)
            scores.setdefault(name, []).append(score)
            print(name, seed, score, flush=True)
    described = {"dataset": source.name, "images": arguments.images, "floor": judge.floor, "scores": scores}
    save_json(arguments.runs / "scores" / f"{source.name}.json", described)


def main() -> None:
    """Scores one dataset, or gathers the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--dataset", type=Path, default=DATASET)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/variety"))
    arguments = parser.parse_args()
    if arguments.part == "run":
        run(arguments)
    else:
        datasets = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
        save_results(RESULT, {"threads": 1, "seeds": SEEDS, "datasets": datasets})


if __name__ == "__main__":
    main()

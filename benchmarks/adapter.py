"""ControlNet on a small Stable Diffusion of our own, and semantic diffusion from scratch, with few labeled micrographs.

    python benchmarks/adapter.py all --minutes 4
    python benchmarks/adapter.py autoencoder
    python benchmarks/adapter.py base
    python benchmarks/adapter.py time
    python benchmarks/adapter.py run --system control --fraction 0.1 --seed 0 --minutes 4
    python benchmarks/adapter.py utility --system control --fraction 0.1 --seed 0 --minutes 4
    python benchmarks/adapter.py table

`autoencoder` and `base` train a base (small_base.py) on images without masks: the sets of --pretraining and the
training micrographs of uhcs. The systems then learn from 10 %, 25 % or all of the training micrographs of uhcs with
their masks: scratch, semantic diffusion; control, a ControlNet on the base; two-step, low-rank updates of the base that
learn the material in a quarter of the minutes, then a ControlNet upon them (Valvano et al. 2024, arXiv 2401.03152).

Equal time does not depend on the load of the machine: `time` measures a training step of each part alternately, in CPU
seconds of one thread, and `run` trains for as many steps as fit into the minutes; those of the base are on top. Images
for masks of the validation split are compared with crops of the test split; a segmenter trained on all real training
crops judges whether they show their masks. The floor are training crops, for masks and copies the validation crops;
beside it the validation crops as the autoencoder reconstructs them, the limit of the base. `utility` trains a segmenter
on the same micrographs with and without pairs that a system generates for their masks, and tests it on the test split.
All parts resume with the same arguments; `all` runs all but `utility` in order, first one seed of all systems, and
`table` writes the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results, time_alternately
from fitting import train_to_end
from pair_judge import GEOMETRY, Judge, draw_images, save_picture
from small_base import PROMPT, UHCS, train_base, train_codec
from steps import TrainingStep

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.crops import load_micrographs
from steelgen.evaluation.reconstruction import compute_kept_detail, compute_psnr
from steelgen.evaluation.study import utility
from steelgen.evaluation.utility.training_set import choose_subset
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Generator
from steelgen.generators.families import load_generator
from steelgen.generators.latent_adapter.base import load_base
from steelgen.generators.latent_adapter.generator import LatentAdapter
from steelgen.generators.latent_adapter.reconstruction import reconstruct
from steelgen.planning.rules import SMALL_NETWORK
from steelgen.sampling.sample import sample
from steelgen.training.setup import prepare_training

RESULTS = Path(__file__).parent / "results"
SYSTEMS = ("control", "scratch", "two-step")
FRACTIONS = (0.1, 0.25, 1.0)
SEEDS = (0, 1, 2)
CONCEPT_SHARE = 0.25
"""Share of the minutes of two-step for the first step."""
SOLVER = SolverSection(num_inference_steps=12)
CONCEPT_PROMPT = "a micrograph of {token}"
CONTROL = {"drivers": ["classes"]}
RATES = {"scratch": 1e-3, "concept": 1e-3, "control": 2e-3}
"""Learning rates; with 1e-3 a ControlNet needs a hundred steps before it steers, a third of four minutes."""


def take_micrographs(fraction: float, seed: int, runs: Path) -> Path:
    """Writes a dataset folder with a fraction of the training micrographs of uhcs, once; larger ones contain smaller
    ones."""
    if fraction == 1:
        return UHCS
    folder = runs / "data" / f"{fraction:g}-seed{seed}"
    if not folder.is_dir():
        stems = load_micrographs(UHCS, "train").stems
        chosen = {stems[index] for index in choose_subset(len(stems), round(fraction * len(stems)), seed)}
        with new_folder(folder) as working:
            shutil.copytree(UHCS, working, dirs_exist_ok=True)
            for path in (working / "train").glob("*/*"):
                if path.stem not in chosen:
                    path.unlink()
    return folder


def build_config(
    part: str, dataset: Path, base: Path, run_dir: Path, seed: int = 0, steps: int = 1, lora: Path | None = None
) -> TrainConfig:
    """Builds the config of scratch, concept or control; `lora` is a trained concept, which control leaves as it is."""
    generator: dict[str, Any] = {"unet": dict(SMALL_NETWORK)}
    if part != "scratch":
        adapters = {"lora": {"rank": 8}} if part == "concept" else {"lora": lora and str(lora), "control": CONTROL}
        prompt = PROMPT if part == "control" and lora is None else CONCEPT_PROMPT
        generator = {"kind": "latent_adapter", "base": str(base), "prompt": prompt, **adapters}
    values = {
        "run_dir": str(run_dir),
        "seed": seed,
        "data": {"dataset": str(dataset), "image_size": GEOMETRY.image_size, "crop_size": GEOMETRY.crop_size},
        "generator": generator,
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "learning_rate": RATES[part],
            "warmup_steps": 30,
            "ema_decay": 0.98,
            "mixed_precision": "auto",
            "checkpoint_every": 50,
            "keep_checkpoints": 1,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
        "measurement": {"every": None},
    }
    return parse_config(values, TrainConfig)


def measure_steps(base: Path, home: Path, repeats: int) -> dict[str, float]:
    """Measures a training step of each part alternately, in median CPU seconds; "upon" is control upon a concept."""
    configs = {part: build_config(part, UHCS, base, Path("unused")) for part in RATES}
    concept = home / "untrained-concept"
    if not concept.is_dir():
        generator = prepare_training(configs["concept"])[0]
        assert isinstance(generator, LatentAdapter)
        generator.save(concept)
    configs["upon"] = build_config("control", UHCS, base, Path("unused"), lora=concept)
    parts: dict[str, Callable[[], Any]] = {part: TrainingStep(config) for part, config in configs.items()}
    return {
        part: float(np.median(found)) for part, found in time_alternately(parts, repeats, time.process_time).items()
    }


def train_system(system: str, fraction: float, base: Path, arguments: argparse.Namespace) -> Generator:
    """Trains a system, or resumes or loads it.

    Raises:
        InputError: if no step times were measured, or a signal ended training.
    """
    seconds = load_json(arguments.home / "step_times.json")
    dataset = take_micrographs(fraction, arguments.seed, arguments.home)
    name = name_run(system, fraction, arguments)

    def train_part(part: str, share: float, lora: Path | None = None) -> Path:
        steps = max(1, round(60 * share * arguments.minutes / seconds["upon" if lora else part]))
        run_dir = arguments.home / (name if part != "concept" else f"{name}-concept")
        config = build_config(part, dataset, base, run_dir, arguments.seed, steps, lora)
        return train_to_end(config)

    if system != "two-step":
        return load_generator(train_part(system, 1.0))
    concept = train_part("concept", CONCEPT_SHARE)
    return load_generator(train_part("control", 1 - CONCEPT_SHARE, concept))


def name_run(system: str, fraction: float, arguments: argparse.Namespace) -> str:
    """Returns the name of a run's folder, picture and scores."""
    return f"{system}-{fraction:g}-seed{arguments.seed}-{arguments.minutes:g}min"


def judge_autoencoder(base: Path, arguments: argparse.Namespace) -> None:
    """Scores the validation crops as the base's autoencoder reconstructs them: the limit of all that it generates."""
    path = arguments.home / "autoencoder.json"
    if path.is_file():
        return
    judge = Judge(arguments.images, arguments.judge_steps)
    restored = reconstruct(load_base(base, torch.float32), judge.real)
    kept = {"psnr_db": compute_psnr(judge.real, restored), "kept_detail": compute_kept_detail(judge.real, restored)}
    save_picture(path.with_suffix(".png"), judge, restored)
    score = {**kept, **judge.score(restored)}
    save_json(path, {"floor": judge.floor, "score": score})
    print("autoencoder", score, flush=True)


def run_system(base: Path, system: str, fraction: float, arguments: argparse.Namespace) -> None:
    """Trains, draws and scores one system with one seed on a fraction of the micrographs."""
    name = name_run(system, fraction, arguments)
    path = arguments.home / "scores" / f"{name}.json"
    if path.is_file():
        return
    generator = train_system(system, fraction, base, arguments)
    judge = Judge(arguments.images, arguments.judge_steps)
    images, rate = draw_images(generator, judge.masks, SOLVER, arguments.seed)
    save_picture(arguments.home / f"{name}.png", judge, images)
    described = {"system": system, "fraction": fraction, "seed": arguments.seed, "minutes": arguments.minutes}
    score = {**judge.score(images), "images_per_second": rate}
    save_json(path, {**described, "images": arguments.images, "floor": judge.floor, "score": score})
    print(name, score, flush=True)


def measure_utility(base: Path, system: str, fraction: float, arguments: argparse.Namespace) -> None:
    """Trains segmenters on a fraction of the micrographs, alone and with pairs of a system for their masks."""
    seed, code = arguments.seed, f"R{100 * fraction:g}%"
    name, folder = name_run(system, fraction, arguments), arguments.home / "utility"
    path = folder / f"{name}.json"
    if path.is_file():
        return
    train_system(system, fraction, base, arguments)
    values = {
        "generator": str(arguments.home / name),
        "output_dir": str(folder / f"{name}-pairs"),
        "seed": seed,
        "mask_source": {"kind": "split", "dataset": str(take_micrographs(fraction, seed, arguments.home))},
        "num_samples": arguments.pairs,
        "solver": SOLVER.model_dump(mode="json"),
    }
    pairs = sample(parse_config(values, SampleConfig))
    shared = {
        "dataset": str(UHCS),
        "architectures": ["segformer"],
        "seeds": [seed],
        "training": {"steps": arguments.judge_steps},
    }
    geometry = {"image_size": GEOMETRY.image_size, "crop_size": GEOMETRY.crop_size}
    # Without pairs a study is the same for all systems.
    studies: dict[str, tuple[Path, dict[str, Any]]] = {
        "real": (folder / f"real-{fraction:g}-seed{seed}", {"codes": [f"{code}F000"], "geometry": geometry}),
        "with pairs": (folder / name, {"codes": [f"{code}FALL"], "generated": str(pairs)}),
    }
    found = {}
    for kind, (out, own) in studies.items():
        config = parse_config({**shared, **own, "output_dir": str(out)}, UtilityConfig)
        utility(config, lambda line: print(line, flush=True))
        (cell,) = (out / "cells").glob("*.json")
        found[kind] = load_json(cell)["test"]["mean_iou"]
    described = {"system": system, "fraction": fraction, "seed": seed, "minutes": arguments.minutes}
    save_json(path, {**described, "pairs": arguments.pairs, "mean_iou": found})
    print(name, found, flush=True)


def write_table(arguments: argparse.Namespace) -> None:
    """Writes the results of all runs with one base."""
    home = arguments.home
    stored = {
        "runs": [load_json(path) for path in sorted((home / "scores").glob("*.json"))],
        "utility": [load_json(path) for path in sorted((home / "utility").glob("*min.json"))],
        "autoencoder": load_json(home / "autoencoder.json"),
        "minutes": {"autoencoder": arguments.codec_minutes, "base": arguments.base_minutes},
        "step_seconds": load_json(home / "step_times.json"),
    }
    save_results(RESULTS / "adapter.json", stored, show=False)


def main() -> None:
    """Runs one part, or all in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("autoencoder", "base", "time", "run", "utility", "table", "all"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/adapter"), help="folder of runs and scores")
    parser.add_argument("--pretraining", type=Path, default=Path("data/pretraining"), help="folder of dataset folders")
    parser.add_argument("--system", choices=SYSTEMS, default="control")
    parser.add_argument("--fraction", type=float, choices=FRACTIONS, default=0.1, help="of the training micrographs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=4, help="CPU minutes of a system's training")
    parser.add_argument("--codec-minutes", type=float, default=8, help="CPU minutes of the autoencoder's training")
    parser.add_argument("--base-minutes", type=float, default=15, help="CPU minutes of the base's training")
    parser.add_argument("--images", type=int, default=64, help="generated images per score")
    parser.add_argument("--judge-steps", type=int, default=300, help="training steps of every segmenter")
    parser.add_argument("--pairs", type=int, default=128, help="generated pairs in `utility`")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each part that `time` measures")
    arguments = parser.parse_args()
    # Everything on one base.
    arguments.home = arguments.runs / f"base-{arguments.codec_minutes:g}-{arguments.base_minutes:g}min"
    torch.set_num_threads(1)
    if arguments.part == "table":
        write_table(arguments)
        return
    codec_dir = arguments.runs / f"autoencoder-{arguments.codec_minutes:g}min"
    codec = train_codec(arguments.pretraining, codec_dir, arguments.codec_minutes)
    if arguments.part == "autoencoder":
        return
    base = train_base(arguments.pretraining, arguments.home, codec, arguments.base_minutes)
    if arguments.part in ("base", "all"):
        judge_autoencoder(base, arguments)
    if arguments.part in ("time", "all") and not (arguments.home / "step_times.json").is_file():
        times = measure_steps(base, arguments.home, arguments.repeats)
        save_json(arguments.home / "step_times.json", times)
        print(json.dumps(times), flush=True)
    if arguments.part in ("run", "utility"):
        act = run_system if arguments.part == "run" else measure_utility
        act(base, arguments.system, arguments.fraction, arguments)
    if arguments.part == "all":
        # The pairs that are compared first.
        order = sorted(product(FRACTIONS, SYSTEMS), key=lambda pair: pair[1] == "two-step")
        for arguments.seed in SEEDS:
            for fraction, system in order:
                run_system(base, system, fraction, arguments)
        write_table(arguments)


if __name__ == "__main__":
    main()

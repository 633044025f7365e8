"""Variants of the training recipe: KID to held-out micrographs at equal training time.

    python benchmarks/recipe.py time
    python benchmarks/recipe.py run --variant default --seed 0 --budget-seconds 600
    python benchmarks/recipe.py table

Every variant trains the same network on the same batches in bf16. Other load on the machine must not matter, so
`time` measures the training steps of all variants alternately, on a CPU as CPU time of one thread, and `run` takes
the number of steps that fits into the budget. `run` resumes after interruption if called with the same arguments. It
scores the EMA weights after half and all of the budget: images sampled for masks of validation and test crops,
compared with test crops. The floor is the score of real training crops; "above the floor" means after subtracting it.
`table` gathers all scores.

Images are sampled with dpmsolver++ for all variants. The ISDM recipe (epsilon, linear schedule, learned variance,
plain gray levels, nearest-neighbor masks, EMA with a decay of 0.9999 from the first step, the epoch of lowest
training loss) is also scored by its last weights with and without EMA, since its choice may not be the best one in
short runs. Stochastic solvers are more tolerant of network errors, so the weights of some variants and the last ones
of ISDM are also scored with sde-dpmsolver++ or, if they have a learned variance, with ddpm; --own-sampler adds ISDM's
own, slower procedure.

results/recipe.json keeps the results of mask-noise, min-snr and augmentation-conditioning, which have been removed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from charts import plot_curves
from common import LinePrinter, save_results, summarize, time_alternately
from numpy.typing import NDArray
from safetensors.torch import load_file
from tables.diffusion import tabulate_scores

from steelgen.config.base import load_config
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.devices import autocast, pick_device
from steelgen.errors import InputError
from steelgen.evaluation.features import build_extractor, compute_cached_features, compute_features
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid
from steelgen.files import default_cache_dir, load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import build_trainable, load_generator
from steelgen.training.checkpoint import newest_checkpoint
from steelgen.training.loop import train
from steelgen.training.post_hoc_ema import export_average
from steelgen.training.setup import build_crops, place_networks, prepare_training
from steelgen.training.state import build_state

CONFIG = Path(__file__).parent / "configs" / "recipe_32.json"
DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"

NOISE, NETWORK, TRAIN = "generator.noise", "generator.unet", "train"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "isdm": {
        f"{NOISE}.prediction_type": "epsilon",
        f"{NOISE}.beta_schedule": "linear",
        f"{NOISE}.zero_terminal_snr": False,
        f"{NOISE}.standardize": False,
        f"{NETWORK}.learn_sigma": True,
        f"{NETWORK}.mask_resize": "nearest",
        f"{TRAIN}.ema_decay": 0.9999,
        f"{TRAIN}.ema_warmup": False,
        "selection.criterion": "train_epoch_loss",
    },
    "x0": {f"{NOISE}.prediction_type": "sample"},
    "epsilon": {f"{NOISE}.prediction_type": "epsilon", f"{NOISE}.zero_terminal_snr": False},
    "linear": {f"{NOISE}.beta_schedule": "linear"},
    "not-standardized": {f"{NOISE}.standardize": False},
    "lognormal": {"diffusion.timestep_sampling": "lognormal"},
    "flow": {f"{NOISE}.prediction_type": "flow", f"{NOISE}.beta_schedule": "flow"},
    "mask-dropout-0.2": {"diffusion.mask_dropout": 0.2},
    "dropout-0.1": {f"{NETWORK}.dropout": 0.1},
    "nearest-masks": {f"{NETWORK}.mask_resize": "nearest"},
    "loss-aware": {"diffusion.timestep_sampling": "loss_second_moment"},
}
"""Changes of CONFIG by variant."""
VARIANTS["cosine-rate"] = {f"{TRAIN}.lr_scheduler": "cosine"}
VARIANTS["isdm-our-average"] = VARIANTS["isdm"] | {f"{TRAIN}.ema_decay": 0.995, f"{TRAIN}.ema_warmup": True}
SAME_STEP = {"cosine-rate": "default", "isdm-our-average": "isdm"}
"""Variants with the same step time as another."""
STOCHASTIC_SOLVERS = {"default": "sde-dpmsolver++", "epsilon": "sde-dpmsolver++", "isdm-our-average": "ddpm"}
"""Variants whose EMA weights are also scored with a stochastic solver."""

LAST_WEIGHTS = "last weights, not averaged"
STORED_STDS, REBUILT_STDS = (0.05, 0.1), (0.03, 0.05, 0.1, 0.15, 0.2, 0.25)
"""Power-function EMAs stored during training, and those rebuilt from them and scored at the end."""
SOLVERS: dict[str, SolverSection | RespacedSolverSection] = {
    name: SolverSection(name=name) for name in ("dpmsolver++", "sde-dpmsolver++", "ddpm")
}


def build_config(variant: str, seed: int, run_dir: Path, steps: int = 1, **changes: Any) -> TrainConfig:
    """Config of a variant, without previews and with frequent checkpoints."""
    values = {
        **VARIANTS[variant],
        "run_dir": str(run_dir),
        "data.dataset": str(DATASET),
        "seed": seed,
        "train.max_steps": steps,
        "train.max_minutes": None,
        "train.mixed_precision": "bf16",
        "train.checkpoint_every": 100,
        "train.keep_checkpoints": 1,
        "preview.num_images": 0,
        "validation.split": None,
        **changes,
    }
    return load_config(CONFIG, TrainConfig, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def build_step(variant: str) -> Callable[[], None]:
    """A training step of a variant on a fixed batch, with everything that `train` does in it."""
    config = build_config(variant, 0, Path("unused"))
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    items = [crops[number] for number in range(config.train.train_batch_size)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    device = pick_device()
    batch = {key: value.to(device) for key, value in batch.items()}
    place_networks(trainable.networks, config.train, device)
    state = build_state(config, trainable, None, len(crops), criterion=None)

    (phase,), (optimizer,) = trainable.phases, state.optimizers.values()

    def step() -> None:
        with autocast("bf16", device):
            losses = trainable.compute_loss(phase, trainable.networks, batch).losses
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(generator.network.parameters(), config.train.max_grad_norm or np.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        for average in state.averages:
            average.update(state.step)
        trainable.end_step(lambda tensor: tensor)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


class Judge:
    """Scores generators against held-out crops."""

    def __init__(self, generator: Generator, images: int) -> None:
        geometry = generator.geometry
        test, val, training = (load_micrographs(DATASET, split) for split in ("test", "val", "train"))
        real, test_masks = cut_crops(test, geometry, images)
        self._masks = np.concatenate([test_masks[: images - images // 2], cut_crops(val, geometry, images // 2)[1]])
        self._extractor = build_extractor("efficientnet-lite0")
        cache = default_cache_dir()
        self._real = compute_cached_features(real, self._extractor, cache)
        seen = cut_crops(training, geometry, images)[0]
        self.floor = self._compare(compute_cached_features(seen, self._extractor, cache))

    def score(self, path: Path, solver: str, seed: int) -> dict[str, float]:
        """KID and Fréchet distance of one image per mask."""
        generator, device = load_generator(path), pick_device()
        generator.network.requires_grad_(False).to(device)
        images: list[NDArray[np.uint8]] = []
        for start in range(0, len(self._masks), 32):
            masks = torch.from_numpy(self._masks[start : start + 32].astype(np.int64))
            seeds = [10_000 * seed + start + index for index in range(len(masks))]
            with autocast("bf16", device):
                drawn = draw_for_masks(generator, masks, seeds, SOLVERS[solver])
            images += [tensor_to_image(image) for image in drawn]
        return self._compare(compute_features(np.stack(images), self._extractor))

    def _compare(self, features: NDArray[np.float32]) -> dict[str, float]:
        kid, spread = compute_kid(self._real, features)
        return {"kid": kid, "kid_std": spread, "fd": compute_frechet_distance(self._real, features)}


def run_variant(arguments: argparse.Namespace) -> None:
    """Trains and scores one variant with one seed; resumes an interrupted run.

    Raises:
        InputError: if step times were not measured, or a signal stopped training.
    """
    runs, variant, seed, budget = arguments.runs, arguments.variant, arguments.seed, arguments.budget_seconds
    times = load_json(runs / "step_times.json")["seconds_a_step"]
    total = round(budget / times[SAME_STEP.get(variant, variant)]["median"])
    name = f"{variant}-seed{seed}-{budget:g}s"
    run_dir, path = runs / name, runs / "scores" / f"{name}.json"
    scores = load_json(path) if path.is_file() else {}
    scores |= {"variant": variant, "seed": seed, "budget_seconds": budget, "steps": total, "images": arguments.images}
    stored = STORED_STDS if arguments.power_averages else ()
    options = {"train.ema_power_stds": list(stored), "train.ema_snapshots_every": max(1, total // 32)}
    judge: Judge | None = None

    def score(label: str, folder: Path, step: int, solver: str = "dpmsolver++") -> None:
        nonlocal judge
        if label in scores.setdefault("scores", {}):
            return
        judge = judge or Judge(load_generator(folder), arguments.images)
        scores["floor"] = judge.floor
        scores["scores"][label] = {"step": step, **judge.score(folder, solver, seed)}
        save_json(path, scores)
        print(name, label, scores["scores"][label], flush=True)

    for share in sorted({*arguments.stages, 1.0}):
        steps = round(share * total)
        label = f"at {share:g}"
        if label in scores.get("scores", {}) and share < 1:
            continue
        result = train(build_config(variant, seed, run_dir, steps, **options), LinePrinter(), resume=True)
        if result.export is None:
            raise InputError(
                f"{name}: stopped by {result.stopped_by} at step {result.global_step}; run again to resume"
            )
        score(label, result.export, steps)
    if variant == "isdm":
        last = export_last_weights(run_dir)
        if steps := arguments.own_sampler:
            SOLVERS["isdm"] = RespacedSolverSection(name="respaced_ddpm", beta_schedule="linear", respacing=str(steps))
            score(f"{LAST_WEIGHTS}, its own sampler, {steps} steps", last, total, "isdm")
        score("best epoch", run_dir / "best", total)
        for solver in ("dpmsolver++", "sde-dpmsolver++", "ddpm"):
            score(f"{LAST_WEIGHTS}, {solver}", last, total, solver)
    if solver := STOCHASTIC_SOLVERS.get(variant):
        score(f"by {solver}", result.export, total, solver)
    for std in REBUILT_STDS if stored else ():
        folder = run_dir / f"export-std-{std:g}"
        if not folder.exists():
            export_average(run_dir, std, total, folder)
        score(f"power average, std {std:g}", folder, total)


def export_last_weights(run_dir: Path) -> Path:
    """Writes a finished run's generator with its last weights in place of their average; returns the folder."""
    folder, checkpoint = run_dir / "export-last", newest_checkpoint(run_dir)
    if not folder.exists() and checkpoint:
        generator = load_generator(run_dir)
        generator.network.load_state_dict(load_file(checkpoint / "weights.safetensors"))
        generator.save(folder)
    return folder


def gather_scores(runs: Path) -> list[dict[str, Any]]:
    """All scores that `run` has stored."""
    return [load_json(path) for path in sorted((runs / "scores").glob("*.json"))]


def gather_curves(gathered: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(training seconds, mean KID above the floor over seeds) of each variant, and of weights without EMA."""
    curves: dict[str, dict[float, list[float]]] = {}
    for run in gathered:
        for label, score in run["scores"].items():
            plain = label.startswith(LAST_WEIGHTS)
            if not plain and not label.startswith("at "):
                continue
            share = 1.0 if plain else float(label.removeprefix("at "))
            above = max(score["kid"] - run["floor"]["kid"], 1e-4)  # for the logarithmic axis
            name = run["variant"] + (label.removeprefix("last weights") if plain else "")
            curves.setdefault(name, {}).setdefault(share * run["budget_seconds"], []).append(above)
    return {
        name: sorted((seconds, float(np.mean(kids))) for seconds, kids in curve.items())
        for name, curve in curves.items()
    }


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/recipe"), help="folder of runs and scores")
    parser.add_argument("--variant", choices=VARIANTS, default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-seconds", type=float, default=600)
    parser.add_argument("--images", type=int, default=256, help="images per score")
    parser.add_argument(
        "--stages",
        type=float,
        nargs="*",
        default=[0.5],
        help="shares of the budget scored before its end",
    )
    parser.add_argument(
        "--own-sampler",
        type=int,
        default=0,
        help="score ISDM's last weights with this number of its ancestral steps too",
    )
    parser.add_argument("--power-averages", action="store_true", help="also store and score power-function EMAs")
    parser.add_argument("--repeats", type=int, default=10, help="steps per variant in `time`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "time":
        clock = time.perf_counter if pick_device().type == "cuda" else time.process_time
        seconds = time_alternately(
            {name: build_step(name) for name in VARIANTS if name not in SAME_STEP}, arguments.repeats, clock
        )
        rows = {name: summarize(values) for name, values in seconds.items()}
        save_results(arguments.runs / "step_times.json", {"threads": 1, "seconds_a_step": rows})
    elif arguments.part == "run":
        os.nice(10)
        run_variant(arguments)
    else:
        gathered = gather_scores(arguments.runs)
        plot_curves(
            gather_curves(gathered),
            "seconds of training",
            "KID above the floor",
            {"default", "isdm", "isdm, not averaged, ddpm", "isdm, not averaged, its own sampler, 50 steps"},
            RESULTS / "recipe.png",
        )
        (RESULTS / "recipe.md").write_text("\n".join(tabulate_scores(gathered)) + "\n", encoding="utf-8")
        times = load_json(arguments.runs / "step_times.json")["seconds_a_step"]
        save_results(RESULTS / "recipe.json", {"seconds_a_step": times, "runs": gathered})


if __name__ == "__main__":
    main()
